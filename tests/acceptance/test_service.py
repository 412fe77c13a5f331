"""What an operator sees of the process: probes, metrics, logs, exit codes, and how it connects."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pika
import pytest

from certificates import Certificates
from conftest import MakeConsumer
from consumer.message import Encoded
from consumer.settings import Settings
from consumer.testing import RabbitMQ, free_port
from faults import Image, Proxy, SlowDisk, log_lines, mounted, wait_done
from harness import Channel, ConsumerProcess, wait_until

IMAGE = Image(0, "a.zarr", "x", (256, 256), 128, (("chunks", [1, 128, 128]),))


def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TILES_")}
    return subprocess.run(
        [sys.executable, "-m", "consumer.cli", *arguments],
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# -- settings that cannot be used ---------------------------------------------------------------

UNUSABLE: dict[str, tuple[str, Mapping[str, str]]] = {
    "output_root missing": ("output_root", {}),
    "output_root absent": ("output_root", {"TILES_OUTPUT_ROOT": "/nowhere/at/all"}),
    "output_root a file": ("output_root", {"TILES_OUTPUT_ROOT": __file__}),
    "output_root not writable": ("output_root", {"TILES_OUTPUT_ROOT": "/proc"}),
    "scratch_folder absent": ("scratch_folder", {"TILES_SCRATCH_FOLDER": "/nowhere/at/all"}),
    "scratch_folder a file": ("scratch_folder", {"TILES_SCRATCH_FOLDER": __file__}),
    "scratch_folder not writable": ("scratch_folder", {"TILES_SCRATCH_FOLDER": "/proc"}),
    "prefetch beyond the memory": (
        "prefetch_count",
        {"TILES_SCRATCH_BYTES": "0", "TILES_PREFETCH_COUNT": "1000"},
    ),
    "budget below a message": ("memory_budget_bytes", {"TILES_MEMORY_BUDGET_BYTES": "17MiB"}),
    "age beyond the broker's": ("max_age_s", {"TILES_MAX_AGE_S": "900"}),
    "wrong type": ("prefetch_count", {"TILES_PREFETCH_COUNT": "many"}),
    "wrong size": ("memory_budget_bytes", {"TILES_MEMORY_BUDGET_BYTES": "much"}),
    "out of range": ("prefetch_count", {"TILES_PREFETCH_COUNT": "0"}),
    "not a number": ("idle_s", {"TILES_IDLE_S": "nan"}),
    "host": ("hosts", {"TILES_HOSTS": "a:b:c"}),
    "no host": ("hosts", {"TILES_HOSTS": ""}),
    "waits in the wrong order": (
        "reconnect_max_s",
        {"TILES_RECONNECT_MIN_S": "50", "TILES_RECONNECT_MAX_S": "1"},
    ),
    "TLS file without TLS": ("tls_ca_file", {"TILES_TLS_CA_FILE": __file__}),
    "TLS file absent": ("tls_ca_file", {"TILES_TLS": "1", "TILES_TLS_CA_FILE": "/nowhere"}),
    "TLS file not one": ("tls_ca_file", {"TILES_TLS": "1", "TILES_TLS_CA_FILE": __file__}),
    "key without certificate": ("tls_key_file", {"TILES_TLS": "1", "TILES_TLS_KEY_FILE": "/x"}),
    "password file absent": ("password_file", {"TILES_PASSWORD_FILE": "/nowhere"}),
    "config file absent": ("config_file", {"TILES_CONFIG_FILE": "/nowhere"}),
    "config file not TOML": ("config_file", {"TILES_CONFIG_FILE": __file__}),
    "log level": ("log_level", {"TILES_LOG_LEVEL": "LOUD"}),
    "port range": ("http_port", {"TILES_HTTP_PORT": "70000"}),
    "http_host": ("http_host", {"TILES_HTTP_HOST": "192.0.2.1"}),
}


@pytest.mark.parametrize(("name", "environment"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_setting_ends_with_code_2_and_one_line_that_names_it(
    tmp_path: Path, name: str, environment: Mapping[str, str]
) -> None:
    usable = {"TILES_OUTPUT_ROOT": str(tmp_path), "TILES_HTTP_PORT": "0"}
    if name == "output_root":
        usable.pop("TILES_OUTPUT_ROOT")
    ended = run("run", **(usable | dict(environment)))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert name in ended.stderr


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("--nonsense", ["run", "--nonsense", "1"]),
        ("--prefetch-count", ["run", "--prefetch-count"]),
        ("stray", ["run", "stray"]),
        ("nonsense", ["nonsense"]),
    ],
    ids=str,
)
def test_an_unusable_argument_ends_with_code_2_and_one_line_that_names_it(
    tmp_path: Path, named: str, arguments: list[str]
) -> None:
    ended = run(*arguments, TILES_OUTPUT_ROOT=str(tmp_path))
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert named in ended.stderr


def test_a_port_in_use_ends_with_code_2_and_one_line_that_names_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ended = run(
            "run",
            TILES_OUTPUT_ROOT=str(tmp_path),
            TILES_HTTP_HOST="127.0.0.1",
            TILES_HTTP_PORT=port,
        )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "http_port" in ended.stderr


@pytest.fixture
def untested(tmp_path: Path) -> Iterator[Path]:
    """An output root on a kind of file system that was never tested."""
    try:
        with mounted("ramfs", tmp_path / "root") as root:
            yield root
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_file_system_that_was_never_tested_ends_with_code_2_and_one_line_that_names_it(
    untested: Path,
) -> None:
    ended = run("run", TILES_OUTPUT_ROOT=str(untested), TILES_HTTP_PORT="0")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert f"ramfs at {untested} " in ended.stderr
    assert "TILES_ACCEPT_FILESYSTEM=ramfs" in ended.stderr


def test_a_file_system_that_was_never_tested_is_used_by_who_accepts_it(
    untested: Path, make_consumer: MakeConsumer, producer: Channel
) -> None:
    with make_consumer(accept_filesystem="ramfs") as consumer:
        producer.publish(IMAGE.message((0, 0)))
        consumer.wait_settled(1)
        assert consumer.stop() == 0
    warnings = [line for line in log_lines(consumer) if "not what it should be" in line]
    assert ["was never tested" in line for line in warnings] == [True]
    assert (untested / "a.zarr").is_dir()


def test_a_password_is_never_shown_with_an_unusable_setting(tmp_path: Path) -> None:
    ended = run(
        "run",
        TILES_OUTPUT_ROOT=str(tmp_path),
        TILES_PASSWORD="open-sesame",
        TILES_PREFETCH_COUNT="1000",
        TILES_SCRATCH_BYTES="0",
    )
    assert ended.returncode == 2
    assert "prefetch_count" in ended.stderr
    assert "open-sesame" not in ended.stderr


# -- help ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown_help() -> str:
    """The help of `consumer run`, without its line breaks."""
    ended = run("run", "--help", COLUMNS="100")
    assert ended.returncode == 0
    return " ".join(ended.stdout.split())


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"failpoints"}))
def test_the_help_lists_the_setting_with_its_description_and_default(
    shown_help: str, name: str
) -> None:
    field = Settings.model_fields[name]
    assert field.description is not None
    flag = f"--{name.replace('_', '-')}"
    said = re.escape(field.description.removesuffix("."))
    expected = "required" if field.is_required() else "default: "
    assert re.search(rf" {flag}[ ,].*?{said}(; {expected}|$)", shown_help) or (
        expected in field.description and re.search(rf" {flag}[ ,].*?{said}", shown_help)
    )


def test_the_help_does_not_speak_of_failpoints(shown_help: str) -> None:
    assert "failpoint" not in shown_help


def test_the_help_of_the_program_names_the_commands() -> None:
    ended = run("--help")
    assert ended.returncode == 0
    assert "consume tiles until SIGTERM" in ended.stdout


# -- probes -------------------------------------------------------------------------------------


def test_a_consumer_started_before_its_broker_lives_and_is_ready_once_that_is_up(
    make_consumer: MakeConsumer,
) -> None:
    with RabbitMQ() as broker:
        broker.stop()
        consumer = make_consumer(hosts=broker.host).start(ready=False)
        wait_until(lambda: consumer.log.read_text().count("connecting again") > 3, "attempts")
        assert (consumer.status("/livez"), consumer.status("/readyz")) == (200, 503)
        broker.start()
        consumer.wait_ready()
        assert consumer.stop() == 0


def test_a_draining_consumer_lives_and_is_not_ready(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    disk = SlowDisk(tmp_path)
    with make_consumer(environment=disk.environment, idle_s=600) as consumer:
        producer.publish(IMAGE.message((0, 0)))
        wait_until(lambda: consumer.metrics()["tiles_open_blocks"] == 1, "an open block")
        disk.take(float("inf"))
        consumer.signal(15)
        wait_until(lambda: consumer.status("/readyz") == 503, "not ready")
        assert consumer.status("/livez") == 200
        disk.take(0)
        assert consumer.process is not None
        assert consumer.process.wait(60) == 0


def test_an_unknown_path_is_not_found(make_consumer: MakeConsumer) -> None:
    with make_consumer() as consumer:
        assert consumer.status("/nonsense") == 404


# -- metrics ------------------------------------------------------------------------------------

METRICS = {
    "deliveries": "tiles_deliveries_total",
    "tiles": "tiles_placed_total",
    "bytes in": "tiles_received_bytes_total",
    "bytes stitched": "tiles_stitched_bytes_total",
    "bytes out": "tiles_committed_bytes_total",
    "acknowledged": "tiles_deliveries_acknowledged_total",
    "blocks when complete": 'tiles_blocks_written_total{reason="complete"}',
    "write latency": "tiles_block_write_seconds_count",
    "end-to-end latency": "tiles_end_to_end_seconds_count",
    "store opens": "tiles_store_opens_total",
    "array opens": "tiles_array_opens_total",
    "write amplification": "tiles_write_amplification_ratio",
    "subscribed": "tiles_subscribed",
    "root writable": "tiles_root_writable",
    "parked": 'tiles_deliveries_parked_total{reason="unknown_version"}',
}
QUIET_METRICS = [
    *(f'tiles_blocks_written_total{{reason="{r}"}}' for r in ("idle", "age", "pressure", "drain")),
    *(f'tiles_held_bytes{{kind="{k}"}}' for k in ("bodies", "blocks", "encoding", "scratch")),
    *(f'tiles_retries_total{{operation="{o}"}}' for o in ("write", "open", "park")),
    *(f'tiles_reconnects_total{{connection="{c}"}}' for c in ("consume", "publish")),
    "tiles_open_blocks",
    "tiles_unacknowledged",
    'tiles_partition_oldest_unacknowledged_seconds{partition="00"}',
    'tiles_deliveries_parked_total{reason="damaged_block"}',
]


@pytest.fixture(scope="module")
def after_a_run(broker: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The metrics and the log of a consumer that has taken four tiles and a bad message."""
    folder, prefix = tmp_path_factory.mktemp("run"), f"m{free_port()}"
    with (
        ConsumerProcess(
            broker, folder / "root", folder / "log", topology_prefix=prefix
        ) as consumer,
        Channel(broker, prefix) as channel,
    ):
        for place in IMAGE.places():
            channel.publish(IMAGE.message(place))
        channel.publish(IMAGE.message((0, 0)), type="tiles.v9", message_id="bad one")
        consumer.wait_settled(5)
        wait_done(consumer, channel)
        metrics = consumer.metrics()
        assert consumer.stop() == 0
    return metrics, log_lines(consumer)


@pytest.mark.parametrize("name", METRICS.values(), ids=METRICS.keys())
def test_the_metric_counts(after_a_run: Any, name: str) -> None:
    metrics, _ = after_a_run
    assert metrics[name] > 0


@pytest.mark.parametrize("name", QUIET_METRICS)
def test_the_metric_is_there_before_its_first_case(after_a_run: Any, name: str) -> None:
    metrics, _ = after_a_run
    assert metrics[name] == 0


def test_no_metric_has_a_label_from_an_open_set(after_a_run: Any) -> None:
    metrics, _ = after_a_run
    labels = set(re.findall(r'(\w+)="', "\n".join(metrics)))
    assert labels <= {"reason", "kind", "operation", "connection", "partition", "le"}


def test_tiles_and_bytes_are_counted_exactly(after_a_run: Any) -> None:
    metrics, _ = after_a_run
    voxels = 256 * 256 * 4
    bodies = sum(len(IMAGE.message(place).body) for place in [*IMAGE.places(), (0, 0)])
    counted = [
        metrics[f"tiles_{name}_total"]
        for name in ("deliveries", "placed", "stitched_bytes", "received_bytes")
    ]
    assert counted == [5, 4, voxels, bodies]


# -- logs ---------------------------------------------------------------------------------------


def test_every_log_line_is_json_with_the_fixed_fields(after_a_run: Any) -> None:
    _, lines = after_a_run
    parsed = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in parsed)


def test_a_log_message_is_one_fixed_sentence(after_a_run: Any) -> None:
    _, lines = after_a_run
    # Where the tests run in a container, its own layer is warned of.
    own = "the output root is not what it should be"
    sentences = {json.loads(line)["message"] for line in lines} - {own}
    assert sentences == {"started", "subscribed", "message parked", "draining", "stopped"}


def test_a_parked_message_is_logged_with_its_reason_and_id(after_a_run: Any) -> None:
    _, lines = after_a_run
    (line,) = [json.loads(line) for line in lines if "message parked" in line]
    assert (line["level"], line["reason"], line["message_id"], line["routing_key"]) == (
        "WARNING",
        "unknown_version",
        "bad one",
        "a.zarr",
    )


def test_nothing_is_logged_for_each_tile(make_consumer: MakeConsumer, producer: Channel) -> None:
    image = Image(0, "a.zarr", "x", (1024, 1024), 64, (("chunks", [1, 128, 128]),))
    with make_consumer() as consumer:
        for place in image.places():
            producer.publish(image.message(place))
        consumer.wait_settled(256)
        assert consumer.stop() == 0
    assert len(log_lines(consumer)) < 8


def test_log_lines_can_be_text(make_consumer: MakeConsumer) -> None:
    with make_consumer(log_format="text") as consumer:
        assert consumer.stop() == 0
    assert any(
        re.search(r"INFO consumer\.subscription subscribed queue='", s) for s in log_lines(consumer)
    )


# -- connecting ---------------------------------------------------------------------------------

USER, PASSWORD, VIRTUAL_HOST = "stitcher", "open sesame", "prediction"


class Secured:
    """A broker with TLS, a user and a virtual host of its own."""

    def __init__(self, folder: Path, *, client_certificate: bool) -> None:
        self.certificates = Certificates(folder)
        self.tls_port = free_port()
        certificate, key = self.certificates.server
        self.broker = RabbitMQ(
            extra_config=(
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
                f"ssl_options.cacertfile = {self.certificates.authority}\n"
                f"ssl_options.certfile = {certificate}\n"
                f"ssl_options.keyfile = {key}\n"
                f"ssl_options.verify = {'verify_peer' if client_certificate else 'verify_none'}\n"
                f"ssl_options.fail_if_no_peer_cert = {str(client_certificate).lower()}\n"
                f"default_user = {USER}\ndefault_pass = {PASSWORD}\n"
                f"default_vhost = {VIRTUAL_HOST}\n"
            )
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What a consumer needs to get in without TLS."""
        return {
            "hosts": self.broker.host,
            "username": USER,
            "password": PASSWORD,
            "virtual_host": VIRTUAL_HOST,
        }

    @property
    def tls_settings(self) -> dict[str, Any]:
        """What a consumer needs to get in with TLS."""
        return self.settings | {
            "hosts": f"127.0.0.1:{self.tls_port}",
            "tls": True,
            "tls_ca_file": self.certificates.authority,
        }

    def publish(self, prefix: str, message: Encoded) -> None:
        """Publish one message with a confirm."""
        host, port = self.broker.host.split(":")
        credentials = pika.PlainCredentials(USER, PASSWORD)
        connection = pika.BlockingConnection(
            pika.ConnectionParameters(host, int(port), VIRTUAL_HOST, credentials)
        )
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(**message.properties)
        channel.basic_publish(prefix, message.routing_key, message.body, properties, mandatory=True)
        connection.close()


@pytest.fixture(scope="module")
def secured(broker: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A broker that shows a certificate."""
    made = Secured(tmp_path_factory.mktemp("tls") / "ca", client_certificate=False)
    with made.broker:
        yield made


@pytest.fixture(scope="module")
def mutual(broker: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A broker that also wants one."""
    made = Secured(tmp_path_factory.mktemp("mtls") / "ca", client_certificate=True)
    with made.broker:
        yield made


def assert_takes_tiles(consumer: ConsumerProcess, to: Secured, prefix: str) -> None:
    """Send a tile through, and end the consumer."""
    with consumer:
        to.publish(prefix, IMAGE.message((0, 0)))
        consumer.wait_settled(1)
        assert consumer.stop() == 0


def test_user_password_and_virtual_host_are_used(
    make_consumer: MakeConsumer, secured: Secured, prefix: str
) -> None:
    assert_takes_tiles(make_consumer(**secured.settings), secured, prefix)


def test_user_and_password_are_read_from_files(
    make_consumer: MakeConsumer, secured: Secured, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "user").write_text(f"{USER}\n")
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    files = {"username_file": tmp_path / "user", "password_file": tmp_path / "password"}
    wrong = {"username": "nobody", "password": "nothing"}
    assert_takes_tiles(make_consumer(**secured.settings | wrong | files), secured, prefix)


def test_a_password_is_read_from_the_secrets_folder(
    make_consumer: MakeConsumer, secured: Secured, prefix: str, tmp_path: Path
) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "tiles_password").write_text(f"{PASSWORD}\n")
    settings = {name: v for name, v in secured.settings.items() if name != "password"}
    assert_takes_tiles(make_consumer(**settings, secrets_folder=folder), secured, prefix)


def test_a_new_password_in_the_file_is_used_at_the_next_attempt(
    make_consumer: MakeConsumer, secured: Secured, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("an old one")
    files = {"password_file": tmp_path / "password"}
    consumer = make_consumer(**secured.settings | files).start(ready=False)
    wait_until(lambda: "connecting again" in consumer.log.read_text(), "a refusal")
    (tmp_path / "password").write_text(PASSWORD)
    consumer.wait_ready()
    assert consumer.stop() == 0


REFUSED = {
    "password": ({"password": "wrong"}, "ACCESS_REFUSED"),
    "virtual host": ({"virtual_host": "elsewhere"}, "not found"),
}


@pytest.mark.parametrize(("wrong", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_broker_refuses_is_logged_in_one_line_for_each_attempt(
    make_consumer: MakeConsumer, secured: Secured, wrong: dict[str, str], words: str
) -> None:
    consumer = make_consumer(**secured.settings | wrong).start(ready=False)
    wait_until(lambda: consumer.log.read_text().count('"consume"') >= 3, "three attempts")
    assert (consumer.status("/livez"), consumer.status("/readyz")) == (200, 503)
    assert consumer.stop() == 0
    lines = [json.loads(line) for line in log_lines(consumer)]
    refusals = [line for line in lines if line["message"] not in {"started", "draining", "stopped"}]
    assert {line["message"] for line in refusals} == {
        "connection lost or refused; connecting again"
    }
    assert [line["error"] for line in refusals if words not in line["error"]] == []


def test_a_dead_host_among_several_is_passed_over(
    make_consumer: MakeConsumer, broker: RabbitMQ
) -> None:
    hosts = f"127.0.0.1:{free_port()},{broker.host},127.0.0.1:{free_port()}"
    with make_consumer(hosts=hosts) as consumer:
        assert consumer.stop() == 0


def test_a_broker_with_a_trusted_certificate_is_used(
    make_consumer: MakeConsumer, secured: Secured, prefix: str
) -> None:
    assert_takes_tiles(make_consumer(**secured.tls_settings), secured, prefix)


def test_a_client_certificate_is_shown_to_a_broker_that_wants_one(
    make_consumer: MakeConsumer, mutual: Secured, prefix: str
) -> None:
    certificate, key = mutual.certificates.client
    shown = {"tls_certificate_file": certificate, "tls_key_file": key}
    assert_takes_tiles(make_consumer(**mutual.tls_settings | shown), mutual, prefix)


def test_a_broker_that_wants_a_client_certificate_refuses_without_one(
    make_consumer: MakeConsumer, mutual: Secured
) -> None:
    assert_never_ready(make_consumer(**mutual.tls_settings))


def test_a_broker_with_an_untrusted_certificate_is_refused(
    make_consumer: MakeConsumer, secured: Secured, mutual: Secured
) -> None:
    other = {"tls_ca_file": mutual.certificates.authority}
    consumer = make_consumer(**secured.tls_settings | other)
    assert_never_ready(consumer)
    assert "CERTIFICATE_VERIFY_FAILED" in consumer.log.read_text()


def test_a_broker_whose_certificate_names_another_host_is_refused(
    make_consumer: MakeConsumer, secured: Secured
) -> None:
    with Proxy(f"127.0.0.1:{secured.tls_port}", address="127.0.0.2") as proxy:
        consumer = make_consumer(**secured.tls_settings | {"hosts": proxy.host})
        assert_never_ready(consumer)
    assert "IP address mismatch" in consumer.log.read_text()


def assert_never_ready(consumer: ConsumerProcess) -> None:
    """Let it try a few times, and end it."""
    consumer.start(ready=False)
    wait_until(lambda: consumer.log.read_text().count("connecting again") > 4, "attempts")
    assert (consumer.status("/livez"), consumer.status("/readyz")) == (200, 503)
    assert consumer.stop() == 0
