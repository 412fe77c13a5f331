"""The consumer needs no more rights than the generated definitions give it."""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from consumer.definitions import CONSUMER, PRODUCER, definitions
from consumer.settings import TopologySettings
from consumer.testing import RabbitMQ
from consumer.topology import topology
from faults import Image, Oracle
from harness import Channel, ConsumerProcess, parameters, wait_until

PARTITIONS = 4
PASSWORD = "a password"


def with_passwords(document: dict[str, Any]) -> dict[str, Any]:
    """Give every user a password, and the tests a user that may do all."""
    salted = hashlib.sha256(b"salt" + PASSWORD.encode()).digest()
    for user in document["users"]:
        user["password_hash"] = base64.b64encode(b"salt" + salted).decode()
    guest = dict(document["users"][0], name="guest")
    guest["password_hash"] = base64.b64encode(
        b"salt" + hashlib.sha256(b"saltguest").digest()
    ).decode()
    document["users"].append(guest)
    all_rights = {"configure": ".*", "write": ".*", "read": ".*"}
    document["permissions"].append({"user": "guest", "vhost": "/"} | all_rights)
    return document


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, broker: RabbitMQ) -> Iterator[RabbitMQ]:
    """A broker that has imported the definitions when it started."""
    wanted = topology(TopologySettings(partitions=PARTITIONS))
    file = tmp_path_factory.mktemp("definitions") / "definitions.json"
    file.write_text(json.dumps(with_passwords(definitions(wanted, "/"))))
    with RabbitMQ(extra_config=f"load_definitions = {file}\n") as running:
        yield running


@dataclass
class _Producer(Channel):
    """Publishes as the producers' user."""

    def __enter__(self) -> "_Producer":
        config = parameters(self.broker)
        config.credentials = pika.PlainCredentials(PRODUCER, PASSWORD)
        self._connection = pika.BlockingConnection(config)
        self.channel = self._connection.channel()
        self.channel.confirm_delivery()
        return self


def test_both_users_do_their_work_with_just_these_rights(strict: RabbitMQ, tmp_path: Path) -> None:
    oracle = Oracle()
    consumer = ConsumerProcess(
        strict,
        tmp_path / "root",
        tmp_path / "log",
        username=CONSUMER,
        password=PASSWORD,
        partitions=PARTITIONS,
        declare_topology=False,
        prefetch_count=50,
    )
    with _Producer(strict) as producer, Channel(strict) as operator, consumer:
        for number in range(6):
            image = Image(number, f"s{number}.zarr", "x", (128, 128), 64)
            for place in image.places():
                producer.publish(image.message(place))
                oracle.note(image, place)
        producer.publish(Image(9, "bad.zarr", "x", (64, 64), 64).message((0, 0)), type="tiles.v9")
        consumer.wait_settled(oracle.count + 1)
        wait_until(lambda: operator.depth("tiles.parked") == 1, "what is parked")
        assert consumer.stop() == 0
    assert oracle.wrong(tmp_path / "root") == 0
    assert "ACCESS_REFUSED" not in consumer.log.read_text()


@pytest.mark.parametrize(
    ("exchange", "queue"), [("", "tiles.parked"), ("tiles", "a.zarr"), ("tiles.4", "a.zarr")]
)
def test_the_consumers_user_may_not_publish_tiles(
    strict: RabbitMQ, exchange: str, queue: str
) -> None:
    config = parameters(strict)
    config.credentials = pika.PlainCredentials(CONSUMER, PASSWORD)
    connection = pika.BlockingConnection(config)
    channel = connection.channel()
    channel.confirm_delivery()
    with pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
        channel.basic_publish(exchange, queue, b"x")
    connection.close()
