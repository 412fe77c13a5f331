"""A first tile from the README alone, with the base install; the line that each mistake gives."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pika
import pytest
import zarr
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import MakeConsumer
from consumer.testing import RabbitMQ, free_port
from harness import Channel

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
EXAMPLE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
URL = '"amqp://guest:guest@localhost:5672"'
STORE = "plate7/d_output.zarr"


# -- the base install ---------------------------------------------------------------------------


def with_dependencies(requirements: list[str]) -> set[str]:
    """Return the names of distributions, and of all that they need."""
    found: set[str] = set()
    left = [Requirement(each) for each in requirements]
    while left:
        wanted = left.pop()
        name = canonicalize_name(wanted.name)
        if name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        left += map(Requirement, metadata.requires(name) or [])
    return found


def not_of_the_base() -> set[str]:
    """Return the packages that are installed here, and are not with the base install."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    base = with_dependencies(project["dependencies"]) | {canonicalize_name(project["name"])}
    owners = metadata.packages_distributions().items()
    return {name for name, of in owners if not base & {canonicalize_name(each) for each in of}}


def program(example: str) -> str:
    """Return a program to which nothing but the base install is there."""
    return f"""\
import sys
class Base:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(not_of_the_base())}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Base())
{example}"""


def run(example: str) -> "subprocess.CompletedProcess[str]":
    """Run an example."""
    words = [sys.executable, "-c", program(example)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def test_what_the_base_install_lacks_is_not_there() -> None:
    lacking = not_of_the_base()
    assert {"zarr", "rich", "prometheus_client", "pydantic_settings", "matplotlib"} <= lacking
    assert not {"numpy", "pika", "pydantic", "pydantic_core", "consumer"} & lacking
    assert run("import zarr").stderr.endswith("ModuleNotFoundError: No module named 'zarr'\n")


def test_the_readmes_first_tile_ends_in_the_array_with_the_base_install(
    make_consumer: MakeConsumer, broker: RabbitMQ, prefix: str, tmp_path: Path
) -> None:
    assert len(EXAMPLE.strip().splitlines()) < 10
    connected = f'"amqp://guest:guest@{broker.host}", topology_prefix="{prefix}"'
    kept = tmp_path / "tile.npy"
    with make_consumer() as consumer:
        done = run(f"{EXAMPLE.replace(URL, connected)}\nnumpy.save({str(kept)!r}, tile)\n")
        assert (done.returncode, done.stderr) == (0, "")
        consumer.wait_settled(1)
        assert consumer.stop() == 0
    tile = np.load(kept)
    stored = zarr.open_array(tmp_path / "root" / STORE, path="g1/img", mode="r")
    np.testing.assert_array_equal(stored[:, 416:624, :208], tile[:, 24:232, 24:232])


# -- mistakes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """What is wrong in the example or with the broker, and the line that says so.

    `error` and `line` are as they are told, but for host and exchange.
    """

    error: str
    line: str
    wrong: tuple[str, str] = ("", "")
    password: str = "guest"
    timeout_s: float = 60
    prepare: Callable[[Channel], None] = lambda _channel: None


def no_queue(channel: Channel) -> None:
    """Declare the exchange only."""
    channel.channel.exchange_declare(channel.prefix, "topic", durable=True)


def full_queue(channel: Channel) -> None:
    """Declare a queue, and fill it until it refuses more."""
    no_queue(channel)
    queue = f"{channel.prefix}.00"
    limits = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    channel.channel.queue_declare(queue, durable=True, arguments=limits)
    channel.channel.queue_bind(queue, channel.prefix, "#")
    with suppress(pika.exceptions.NackError):
        while True:
            channel.channel.basic_publish(channel.prefix, STORE, b"")


MISTAKES = {
    "wrong shape": Mistake(
        "InvalidMessage",
        "tile 0: the tensor of shape [256, 256] must have 3 axes: channel first, then 2 of space",
        ("rand(1, 256, 256)", "rand(256, 256)"),
    ),
    "wrong dtype": Mistake(
        "UnsafeCast",
        "tile 0: float32 cannot be stored as uint16 without loss; cast it before publishing",
        ('"axes": "CYX"', '"axes": "CYX", "dtype": "uint16"'),
    ),
    "misspelt axis": Mistake(
        "InvalidMessage",
        "axes: must be some of STCZYX in that order, always with YX (got 'CXY')",
        ('"CYX"', '"CXY"'),
    ),
    "stitch outside": Mistake(
        "OutOfBounds",
        "tile 0: stitch_coords [4160, 0] with a crop of [208, 208] leave the array of [4160, 4160]",
        ("[416, 0]", "[4160, 0]"),
    ),
    "broker down": Mistake(
        "BrokerUnreachable",
        "no connection to RabbitMQ at HOST: Connection refused; start it, or check host, port and "
        "tls",
        timeout_s=5,
    ),
    "wrong password": Mistake(
        "AccessRefused",
        "RabbitMQ at HOST refuses user 'guest'; check username and password (guest may connect "
        "from the broker's own host only)",
        password="wrong",
    ),
    "no exchange": Mistake(
        "Unroutable",
        "there is no exchange 'EXCHANGE' in virtual host '/'; start the consumer, which declares "
        "it, or check topology_prefix",
    ),
    "no queue": Mistake(
        "Unroutable",
        "no queue takes store key 'plate7/d_output.zarr' from exchange 'EXCHANGE'; start the "
        "consumer, which declares it, or bind the queue",
        prepare=no_queue,
    ),
    "queue full": Mistake(
        "QueueFull",
        "the queue behind exchange 'EXCHANGE' refuses more for store key 'plate7/d_output.zarr'; "
        "start or add consumers, raise TILES_QUEUE_MAX_BYTES, or wait longer",
        timeout_s=10,
        prepare=full_queue,
    ),
    "connection blocked": Mistake(
        "BrokerBlocked",
        "RabbitMQ at HOST takes nothing from publishers: low on memory; free memory or disk "
        "there, or wait longer",
        timeout_s=10,
    ),
}


@pytest.mark.parametrize(("name", "mistake"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_gives_the_line_that_says_what_to_change(
    broker: RabbitMQ, name: str, mistake: Mistake
) -> None:
    memory = "vm_memory_high_watermark.absolute = 1MB\n"
    blocked: AbstractContextManager[RabbitMQ] = (
        RabbitMQ(extra_config=memory) if name == "connection blocked" else nullcontext(broker)
    )
    with blocked as server, Channel(server, f"t-{name.replace(' ', '-')}") as channel:
        mistake.prepare(channel)
        host = f"127.0.0.1:{free_port()}" if name == "broker down" else server.host
        connected = (
            f'"amqp://guest:{mistake.password}@{host}", topology_prefix="{channel.prefix}", '
            f"timeout_s={mistake.timeout_s}"
        )
        assert URL in EXAMPLE
        assert mistake.wrong[0] in EXAMPLE

        done = run(EXAMPLE.replace(URL, connected).replace(*mistake.wrong))

    told = mistake.line.replace("HOST", host).replace("EXCHANGE", channel.prefix)
    assert done.stderr.splitlines()[-1] == f"consumer.errors.{mistake.error}: {told}"
    assert done.returncode == 1
    assert done.stdout == ""


def test_the_readme_lists_the_mistakes_with_their_lines() -> None:
    rows = re.findall(r"^\| ([a-z ]+) \| `(.+)` \|$", README, re.MULTILINE)
    told = {
        name: mistake.line.replace("HOST", "rabbitmq:5672").replace("EXCHANGE", "tiles")
        for name, mistake in MISTAKES.items()
    }
    assert {name: line for name, line in rows if name in told} == told
