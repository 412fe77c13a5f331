"""`consumer doctor` beside a real RabbitMQ: what it finds, and that it changes nothing."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import MakeConsumer
from consumer.message import encode
from consumer.settings import Settings
from consumer.testing import RabbitMQ, free_port
from consumer.topology import topology
from faults import SlowDisk
from harness import Channel
from scale.brokers import version

LIMIT = 2 << 20


@dataclass(frozen=True)
class Report:
    """What `consumer doctor` said, and how it ended."""

    code: int
    lines: list[dict[str, str]]

    def verdicts(self, check: str) -> list[str]:
        """Return how a check ended."""
        return [line["verdict"] for line in self.lines if line["check"] == check]

    def failed(self) -> list[str]:
        """Return the checks that failed."""
        return [line["check"] for line in self.lines if line["verdict"] == "failed"]

    def said(self, check: str) -> str:
        """Return what a check said, with the remedy."""
        lines = [line for line in self.lines if line["check"] == check]
        return "\n".join(f"{line['said']}; {line['remedy']}" for line in lines)


def run(
    hosts: str, root: Path, *words: str, environment: Any = None, **settings: Any
) -> "subprocess.CompletedProcess[str]":
    """Run `consumer doctor` to its end."""
    root.mkdir(exist_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TILES_")}
    named = {"output_root": root, "hosts": hosts} | settings
    variables = {f"TILES_{name}".upper(): str(value) for name, value in named.items()}
    return subprocess.run(
        [sys.executable, "-m", "consumer.cli", "doctor", *words],
        env=clean | variables | (environment or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def examined(hosts: str, root: Path, **settings: Any) -> Report:
    """Return what `consumer doctor` finds."""
    ended = run(hosts, root, "--json", **settings)
    assert ended.stderr == ""
    return Report(ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()])


def declared(channel: Channel, **changed: Any) -> Channel:
    """Declare what the consumer needs; `changed` are arguments of the partition queue."""
    wanted = topology(Settings(output_root=Path(), topology_prefix=channel.prefix))
    for exchange in (wanted.tiles, wanted.parking, wanted.events):
        channel.channel.exchange_declare(exchange.name, exchange.type, durable=True)
    for queue in wanted.queues:
        arguments = queue.arguments | (changed if queue in wanted.partitions else {})
        channel.channel.queue_declare(queue.name, durable=True, arguments=arguments)
    for binding in wanted.bindings:
        channel.channel.queue_bind(binding.destination, binding.source, binding.routing_key)
    return channel


MESSAGE = encode(
    {
        "store": "a.zarr",
        "array": "x",
        "axes": "YX",
        "shape": [4, 4],
        "tiles": [{"stitch_coords": [0, 0]}],
    },
    [np.ones((1, 4, 4), "float32")],
)


def test_all_is_well_beside_a_consumer_at_work(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    root, hosts = tmp_path / "root", producer.broker.host
    with make_consumer() as consumer:
        report = examined(hosts, root, topology_prefix=producer.prefix)
        producer.publish(MESSAGE)
        consumer.wait_settled(1)
        found = consumer.metrics()
        assert consumer.stop() == 0
    assert (report.code, report.failed()) == (0, [])
    assert [v for k, v in found.items() if k.startswith("tiles_reconnects_total")] == [0, 0]
    assert found['tiles_partition_channels_lost_total{partition="00"}'] == 0
    checks = ("packages", "output root", "removed folders", "topology", "permissions")
    for check in (*checks, "message size", "clock", "settings", "plugins"):
        assert report.verdicts(check) == ["ok"], report.lines
    assert report.verdicts("consumer timeout") == ["unknown"]
    assert report.said(f"node {hosts}").startswith("RabbitMQ ")


def test_nothing_is_left_or_taken(producer: Channel, tmp_path: Path) -> None:
    prefix = declared(producer).prefix
    producer.publish(MESSAGE)
    producer.channel.queue_declare(f"{prefix}.heard")
    for exchange in (f"{prefix}.events", f"{prefix}.parking", prefix):
        producer.channel.queue_bind(f"{prefix}.heard", exchange, "#")

    report = examined(producer.broker.host, tmp_path / "root", topology_prefix=prefix)

    assert report.failed() == []
    assert "holds 1 messages" in report.said("topology")
    assert list((tmp_path / "root").iterdir()) == []
    assert [producer.depth(f"{prefix}.{q}") for q in ("00", "parked", "heard")] == [1, 0, 0]
    found = producer.channel.consume(f"{prefix}.00", inactivity_timeout=60)
    method, properties, _ = next(found)
    assert (method.redelivered, properties.headers) == (False, {})


def test_a_wrong_password_is_told_and_the_rest_is_checked(broker: RabbitMQ, tmp_path: Path) -> None:
    report = examined(broker.host, tmp_path, password="hunter2")
    assert (report.code, report.failed()) == (1, [f"node {broker.host}"])
    assert "refuses user 'guest'; check username and password" in report.said(report.failed()[0])
    assert "hunter2" not in str(report.lines)
    assert report.verdicts("topology") == ["unknown"]
    assert report.verdicts("removed folders") == ["ok"]


def test_what_the_consumer_will_declare_is_no_failure(
    broker: RabbitMQ, prefix: str, tmp_path: Path
) -> None:
    report = examined(broker.host, tmp_path, topology_prefix=prefix)
    assert (report.code, report.verdicts("topology")) == (0, ["warning"] * 5)
    assert f"there is no queue {prefix}.00 yet" in report.said("topology")
    assert report.verdicts("permissions") == ["unknown"] * 3
    assert report.verdicts("message size") == ["ok"]


def test_what_nobody_will_declare_is_missing(broker: RabbitMQ, prefix: str, tmp_path: Path) -> None:
    report = examined(broker.host, tmp_path, topology_prefix=prefix, declare_topology=False)
    assert (report.code, report.verdicts("topology")) == (1, ["failed"] * 5)
    assert "set TILES_DECLARE_TOPOLOGY=true" in report.said("topology")
    assert report.verdicts("bindings") == ["unknown"]


@pytest.mark.parametrize("declares", [True, False])
def test_a_queue_with_another_argument_is_told_with_both_values(
    producer: Channel, tmp_path: Path, declares: bool
) -> None:
    prefix = declared(producer, **{"x-delivery-limit": 20}).prefix
    report = examined(
        producer.broker.host, tmp_path, topology_prefix=prefix, declare_topology=declares
    )
    assert (report.code, report.verdicts("topology")) == (1, ["failed"])
    said = report.said("topology")
    assert "inequivalent arg 'x-delivery-limit'" in said
    assert "received '1000' but current is '20'" in said


def test_an_exchange_of_another_type_is_told(producer: Channel, tmp_path: Path) -> None:
    prefix = declared(producer).prefix
    producer.channel.exchange_delete(f"{prefix}.events")
    producer.channel.exchange_declare(f"{prefix}.events", "fanout", durable=True)
    report = examined(producer.broker.host, tmp_path, topology_prefix=prefix)
    assert report.failed() == ["topology"]
    assert "received 'topic' but current is 'fanout'" in report.said("topology")


# -- permissions and limits ---------------------------------------------------------------------

RIGHTS = {
    "guest": (".*", ".*", ".*"),
    "least": ("^$", r"^tiles\.(parking|events|parked)$", r"^tiles(\.00)?$"),
    "blind": ("^$", r"^tiles\.(parking|events)$", r"^tiles\.00$"),
    "mute": ("^$", r"^tiles\.events$", ".*"),
    "deaf": ("^$", ".*", r"^tiles\.parked$"),
}


def _definitions() -> dict[str, Any]:
    salt = b"salt"
    users, permissions = [], []
    for name, rights in RIGHTS.items():
        digest = base64.b64encode(salt + hashlib.sha256(salt + name.encode()).digest()).decode()
        users.append({"name": name, "password_hash": digest, "tags": ""})
        named = dict(zip(("configure", "write", "read"), rights, strict=True))
        permissions.append({"user": name, "vhost": "/", **named})
    return {"vhosts": [{"name": "/"}], "users": users, "permissions": permissions}


@pytest.fixture(scope="module")
def strict(broker: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A broker with users of few rights, named like their passwords, and a message limit."""
    file = tmp_path_factory.mktemp("definitions") / "definitions.json"
    file.write_text(json.dumps(_definitions()))
    config = f"load_definitions = {file}\nmax_message_size = {LIMIT}\n"
    with RabbitMQ(extra_config=config) as running, Channel(running) as channel:
        declared(channel)
        yield running


def as_user(broker: RabbitMQ, root: Path, name: str, **settings: Any) -> Report:
    """Return what `consumer doctor` finds as a user, where messages are small."""
    usual = {"declare_topology": False, "max_message_bytes": LIMIT}
    return examined(broker.host, root, username=name, password=name, **usual | settings)


def test_the_least_rights_that_production_needs_are_enough(
    strict: RabbitMQ, tmp_path: Path
) -> None:
    report = as_user(strict, tmp_path, "least")
    assert (report.code, report.failed()) == (0, [])
    assert report.verdicts("permissions") == ["ok"]
    assert report.verdicts("topology") == ["unknown"] * 5
    assert report.verdicts("message size") == ["ok"]


@pytest.mark.parametrize(
    ("name", "act", "right"),
    [
        ("mute", "may not publish to tiles.parking", "write"),
        ("deaf", "may not consume from tiles.00", "read"),
    ],
)
def test_a_right_that_is_missing_is_told(
    strict: RabbitMQ, tmp_path: Path, name: str, act: str, right: str
) -> None:
    report = as_user(strict, tmp_path, name)
    assert (report.code, report.failed()) == (1, ["permissions"])
    assert f"user '{name}' {act}" in report.said("permissions")
    assert f"give it the right to {right} that" in report.said("permissions")


def test_what_the_user_may_not_see_is_told(strict: RabbitMQ, tmp_path: Path) -> None:
    report = as_user(strict, tmp_path, "blind")
    if tuple(map(int, version(strict).split(".")[:2])) < (4, 3):
        assert (report.code, report.verdicts("topology")) == (0, ["unknown"] * 5)
        return
    assert (report.code, report.failed()) == (1, ["topology"] * 2)
    for what in "exchange tiles", "queue tiles.parked":
        assert f"user 'blind' may not see whether {what} is there" in report.said("topology")
    assert "give it any right to that" in report.said("topology")


def test_who_is_to_declare_and_may_not_is_told(strict: RabbitMQ, tmp_path: Path) -> None:
    report = as_user(strict, tmp_path, "least", declare_topology=True)
    assert (report.code, set(report.failed())) == (1, {"topology"})
    assert "TILES_DECLARE_TOPOLOGY=false" in report.said("topology")


@pytest.mark.parametrize(("over", "verdict"), [(0, "ok"), (1, "failed")])
@pytest.mark.parametrize("name", ["guest", "mute"])
def test_a_message_over_the_brokers_limit_is_told_to_the_byte(
    strict: RabbitMQ, tmp_path: Path, name: str, over: int, verdict: str
) -> None:
    report = as_user(strict, tmp_path, name, max_message_bytes=LIMIT + over)
    assert report.verdicts("message size") == [verdict]
    if over:
        assert f"at most {LIMIT} bytes" in report.said("message size")


# -- what is away -------------------------------------------------------------------------------


def test_a_broker_that_is_away_is_told_before_anybody_waits_for_it(tmp_path: Path) -> None:
    report = examined(f"127.0.0.1:{free_port()}", tmp_path)
    assert report.code == 1
    assert "Connection refused; start it" in report.said(report.failed()[0])
    assert report.verdicts("removed folders") == ["ok"]


def test_a_broker_that_does_not_answer_is_waited_for_seconds_only(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        report = examined(f"127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        assert time.monotonic() - begun < 60
    assert report.code == 1
    assert len(report.failed()) == 1
    assert report.verdicts("removed folders") == ["ok"]


def test_a_node_that_is_away_beside_one_that_answers_is_a_warning(
    producer: Channel, tmp_path: Path
) -> None:
    prefix = declared(producer).prefix
    away = f"127.0.0.1:{free_port()}"
    report = examined(f"{away},{producer.broker.host}", tmp_path, topology_prefix=prefix)
    assert (report.code, report.verdicts(f"node {away}")) == (0, ["warning"])
    assert report.verdicts("topology") == ["ok"]


def test_a_broker_that_takes_nothing_is_told(tmp_path: Path) -> None:
    config = "vm_memory_high_watermark.absolute = 1MB\n"
    with RabbitMQ(extra_config=config) as broker, Channel(broker) as channel:
        declared(channel)
        report = examined(broker.host, tmp_path)
    assert report.code == 1
    assert "short of memory or disk" in report.said("permissions")
    assert report.verdicts("topology") == ["ok"]


def test_a_root_that_is_not_there_is_told_once_and_the_rest_is_checked(
    producer: Channel, tmp_path: Path
) -> None:
    prefix, missing = declared(producer).prefix, tmp_path / "missing"
    report = examined(producer.broker.host, tmp_path, topology_prefix=prefix, output_root=missing)
    assert (report.code, report.failed()) == (1, ["output root"])
    assert report.verdicts("clock") == report.verdicts("one file system") == ["unknown"]
    assert report.verdicts("topology") == ["ok"]


def test_a_disk_that_does_not_answer_is_waited_for_seconds_only(
    producer: Channel, tmp_path: Path
) -> None:
    prefix = declared(producer).prefix
    disk = SlowDisk(tmp_path)
    disk.take(float("inf"))
    report = examined(
        producer.broker.host,
        tmp_path / "root",
        topology_prefix=prefix,
        environment=disk.environment,
    )
    assert (report.code, report.failed()) == (1, ["output root"])
    assert "no answer within 10 s" in report.said("output root")
    assert report.verdicts("clock") == ["unknown"]
    assert report.verdicts("topology") == ["ok"]


# -- the command --------------------------------------------------------------------------------


def test_a_pipe_gets_a_plain_line_for_each(broker: RabbitMQ, tmp_path: Path) -> None:
    lines = run(broker.host, tmp_path).stdout.splitlines()
    assert {len(line.split("\t")) for line in lines} == {4}
    assert any(line.startswith("ok\tremoved folders\t") for line in lines)


def test_a_misspelt_variable_is_told(broker: RabbitMQ, tmp_path: Path) -> None:
    report = examined(broker.host, tmp_path, prefetch="7")
    assert report.verdicts("settings") == ["warning"]
    assert "TILES_PREFETCH" in report.said("settings")


@pytest.mark.parametrize("wrong", [{"TILES_MAX_AGE_S": "900"}, {"TILES_HOSTS": "a:b:c"}])
def test_settings_that_cannot_be_used_end_with_code_2(
    broker: RabbitMQ, tmp_path: Path, wrong: dict[str, str]
) -> None:
    ended = run(broker.host, tmp_path, environment=wrong)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert len(ended.stderr.splitlines()) == 1
    assert "see consumer doctor --help" in ended.stderr
