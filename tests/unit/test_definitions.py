"""The document that RabbitMQ imports says what the consumer would declare, and no more rights."""

import json
import re
from pathlib import Path

import pytest

from consumer import cli
from consumer.definitions import CONSUMER, PRODUCER, definitions
from consumer.settings import TopologySettings
from consumer.topology import topology

FILE = Path(__file__).parents[2] / "deploy/rabbitmq/definitions.json"
WANTED = topology(TopologySettings(partitions=16))


def test_the_file_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["topology", "show", "--definitions", "--partitions", "16"]) == 0
    assert FILE.read_text() == capsys.readouterr().out, "make topology"


def test_it_has_every_thing_and_binding_of_the_topology_in_order() -> None:
    found = json.loads(FILE.read_text())
    assert [x["name"] for x in found["exchanges"]] == [x.name for x in WANTED.exchanges]
    assert {x["name"]: x["arguments"] for x in found["queues"]} == {
        x.name: x.arguments for x in WANTED.queues
    }
    assert [(x["source"], x["destination"]) for x in found["bindings"]] == [
        (x.source, x.destination) for x in WANTED.bindings
    ]


@pytest.mark.parametrize(
    ("user", "write", "read"),
    [
        (CONSUMER, {"tiles.parking", "tiles.events"}, {x.name for x in WANTED.partitions}),
        (PRODUCER, {"tiles"}, set()),
    ],
)
def test_a_user_may_do_what_it_must_and_nothing_else(
    user: str, write: set[str], read: set[str]
) -> None:
    (rights,) = [x for x in definitions(WANTED, "/")["permissions"] if x["user"] == user]
    # The default exchange is called amq.default, and leads to every queue.
    names = {x.name for x in WANTED.exchanges} | {x.name for x in WANTED.queues}
    names |= {"amq.default", "tilesX00"}
    allowed = {act: {x for x in names if re.search(rights[act], x)} for act in ("write", "read")}
    assert allowed == {"write": write, "read": read}
    assert not any(re.search(rights["configure"], name) for name in names)


def test_nobody_gets_in_before_a_password_is_given() -> None:
    assert {user["password_hash"] for user in definitions(WANTED, "/")["users"]} == {""}
