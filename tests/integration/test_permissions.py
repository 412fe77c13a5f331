"""Consumers, producers, operators and the autoscaler need no more rights than the definitions give.

The broker gets them as deploy/README.md says: imported, then a password for each user.
"""

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
import pytest
import yaml
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker

from consumer.definitions import CONSUMER, MONITOR, OPERATOR, PRODUCER
from consumer.publisher import TilePublisher
from consumer.testing import RabbitMQ, free_port
from faults import Image, Oracle, control
from harness import Channel, ConsumerProcess, parameters, voxels, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
FILE = DEPLOY / "rabbitmq/definitions.json"
DEFINITIONS = FILE.read_text()
PARTITIONS = sum(each["name"] != "tiles.parked" for each in json.loads(DEFINITIONS)["queues"])
PASSWORD = "a password"
BAD = Image(9, "bad.zarr", "x", (64, 64), 64).message((0, 0))


class Strict(RabbitMQ):
    """A broker that has imported the definitions, with a password for each of their users."""

    def __init__(self) -> None:
        self.management = free_port()
        listener = {"ip": "127.0.0.1", "port": self.management}
        super().__init__(
            extra_config="".join(f"management.tcp.{k} = {v}\n" for k, v in listener.items()),
            plugins=("rabbitmq_consistent_hash_exchange", "rabbitmq_management"),
        )

    def install(self) -> None:
        """Do what the guide says."""
        control(self, "import_definitions", str(FILE))
        for user in json.loads(DEFINITIONS)["users"]:
            control(self, "change_password", user["name"], given=f"{PASSWORD}\n")


@pytest.fixture(scope="module")
def strict(broker: RabbitMQ) -> Iterator[Strict]:
    """The broker, installed."""
    with Strict() as running:
        running.install()
        yield running


def parameters_of(broker: RabbitMQ, user: str) -> pika.ConnectionParameters:
    """Return how a user of the definitions connects."""
    config = parameters(broker)
    config.credentials = pika.PlainCredentials(user, PASSWORD)
    return config


@dataclass
class _Producer(Channel):
    """Publishes as the producers' user."""

    def __enter__(self) -> "_Producer":
        self._connection = pika.BlockingConnection(parameters_of(self.broker, PRODUCER))
        self.channel = self._connection.channel()
        self.channel.confirm_delivery()
        return self


def consumer_of(strict: RabbitMQ, folder: Path, **settings: Any) -> ConsumerProcess:
    """Return a consumer with the rights that production's has."""
    usual = {"partitions": PARTITIONS, "declare_topology": False, "prefetch_count": 10}
    named = {"username": CONSUMER, "password": PASSWORD} | usual | settings
    return ConsumerProcess(strict, folder / "root", folder / "log", **named)


def as_operator(strict: RabbitMQ, folder: Path, *words: str) -> str:
    """Run a command as the operators' user; return what it said."""
    file = folder / "operator.txt"
    file.write_text(f"{PASSWORD}\n")
    access = ["--hosts", strict.host, "--username", OPERATOR, "--password-file", str(file)]
    done = subprocess.run(
        [sys.executable, "-m", "consumer.cli", *words, *access],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_consumer_and_producer_do_their_work(strict: RabbitMQ, tmp_path: Path) -> None:
    oracle = Oracle()
    consumer = consumer_of(strict, tmp_path)
    with _Producer(strict) as producer, Channel(strict) as administrator, consumer:
        for number in range(6):
            image = Image(number, f"s{number}.zarr", "x", (128, 128), 64)
            for place in image.places():
                producer.publish(image.message(place))
                oracle.note(image, place)
        producer.publish(BAD, type="tiles.v9")
        consumer.wait_settled(oracle.count + 1)
        wait_until(lambda: administrator.depth("tiles.parked") == 1, "what is parked")
        assert consumer.stop() == 0
        administrator.channel.queue_purge("tiles.parked")
    assert oracle.wrong(tmp_path / "root") == 0
    assert "ACCESS_REFUSED" not in consumer.log.read_text()


@pytest.mark.parametrize(
    ("exchange", "queue"),
    [("", "tiles.parked"), ("tiles", "a.zarr"), (f"tiles.{PARTITIONS}", "a.zarr")],
)
def test_the_consumers_user_may_not_publish_tiles(
    strict: RabbitMQ, exchange: str, queue: str
) -> None:
    with pika.BlockingConnection(parameters_of(strict, CONSUMER)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
            channel.basic_publish(exchange, queue, b"x")


def test_a_producer_hears_that_its_array_is_complete(strict: RabbitMQ, tmp_path: Path) -> None:
    array = {"store": "heard.zarr", "array": "x", "axes": "CYX", "shape": [1, 64, 64]}
    options: dict[str, Any] = {"username": PRODUCER, "password": PASSWORD, "completions": True}
    with (
        consumer_of(strict, tmp_path) as consumer,
        TilePublisher(strict.host, **options) as publisher,
    ):
        publisher.publish(array, voxels((1, 64, 64)), (0, 0))
        publisher.flush()
        publisher.wait_completed(120)
        assert consumer.stop() == 0


def test_an_operator_lists_shows_exports_replays_and_drops(
    strict: RabbitMQ, tmp_path: Path
) -> None:
    def park(count: int) -> None:
        for _ in range(count):
            administrator.channel.basic_publish("tiles.parking", "bad.zarr", BAD.body)
        wait_until(lambda: administrator.depth("tiles.parked") == count, "what is parked")

    def waiting() -> int:
        names = [each["name"] for each in json.loads(DEFINITIONS)["queues"]]
        return sum(administrator.depth(name) for name in names if name != "tiles.parked")

    with Channel(strict) as administrator:
        park(2)
        rows = as_operator(strict, tmp_path, "parked", "list", "--json").splitlines()
        assert len(rows) == 2
        identity = json.loads(rows[0])["id"]
        assert identity in as_operator(strict, tmp_path, "parked", "show", identity)
        folder = tmp_path / "exported"
        as_operator(strict, tmp_path, "parked", "export", "--to", str(folder))
        assert list(folder.iterdir())
        as_operator(strict, tmp_path, "parked", "replay")
        wait_until(lambda: waiting() == 2, "what was replayed")
        park(1)
        as_operator(strict, tmp_path, "parked", "drop", "--yes")
        wait_until(lambda: administrator.depth("tiles.parked") == 0, "nothing parked")
        for each in json.loads(DEFINITIONS)["queues"]:
            administrator.channel.queue_purge(each["name"])


def test_an_operator_moves_to_other_partitions_and_consumers_need_no_other_rights(
    strict: RabbitMQ, tmp_path: Path
) -> None:
    more = 2 * PARTITIONS
    old, new = str(PARTITIONS), str(more)

    def operate(name: str, *words: str) -> None:
        as_operator(strict, tmp_path, "topology", name, *words)

    operate("check", "--partitions", old)
    operate("move", "--partitions", new, "--from", old)
    oracle, image = Oracle(), Image(8, "moved.zarr", "x", (128, 128), 64)
    with consumer_of(strict, tmp_path, partitions=more) as consumer, _Producer(strict) as producer:
        for place in image.places():
            producer.publish(image.message(place))
            oracle.note(image, place)
        consumer.wait_settled(oracle.count)
        assert consumer.stop() == 0
    assert oracle.wrong(tmp_path / "root") == 0
    operate("move", "--partitions", old, "--from", new)
    operate("remove", "--partitions", old, "--from", new)


def test_an_operator_touches_nothing_of_others(strict: RabbitMQ) -> None:
    with (
        pika.BlockingConnection(parameters_of(strict, OPERATOR)) as connection,
        pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"),
    ):
        connection.channel().queue_declare("others.00", durable=True)


def asked_by_the_autoscaler(strict: Strict, user: str) -> set[str]:
    """Return the queues that KEDA's question finds; 401 is an HTTPError."""
    (trigger,) = next(
        manifest["spec"]["triggers"]
        for manifest in yaml.safe_load_all(
            (DEPLOY / "kubernetes/components/autoscaling/scaledobject.yaml").read_text()
        )
        if manifest["kind"] == "ScaledObject"
    )
    # As its scaler asks over HTTP (pkg/scalers/rabbitmq_scaler.go).
    wanted = trigger["metadata"]
    asked = {"page": 1, "page_size": wanted["pageSize"], "name": wanted["queueName"]}
    query = urllib.parse.urlencode(asked | {"use_regex": "true", "pagination": "false"})
    request = urllib.request.Request(
        f"http://127.0.0.1:{strict.management}/api/queues/%2F?{query}",
        headers={
            "Authorization": f"Basic {base64.b64encode(f'{user}:{PASSWORD}'.encode()).decode()}"
        },
    )
    with urllib.request.urlopen(request, timeout=60) as got:
        return {queue["name"] for queue in json.load(got)["items"]}


def test_the_autoscaler_counts_with_the_monitors_rights(strict: Strict) -> None:
    found = asked_by_the_autoscaler(strict, MONITOR)
    assert len(found) == PARTITIONS
    with pytest.raises(urllib.error.HTTPError, match="401"):
        asked_by_the_autoscaler(strict, CONSUMER)


def test_who_imports_the_definitions_again_gives_the_passwords_again(strict: Strict) -> None:
    control(strict, "import_definitions", str(FILE))
    with pytest.raises(AMQPConnectionError):
        pika.BlockingConnection(parameters_of(strict, CONSUMER))
    strict.install()
    pika.BlockingConnection(parameters_of(strict, CONSUMER)).close()
