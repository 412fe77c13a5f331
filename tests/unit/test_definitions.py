"""The document that RabbitMQ imports says what the consumer would declare, and no more rights."""

import json
import re
from pathlib import Path

import pytest

from consumer import cli
from consumer.definitions import CONSUMER, MONITOR, OPERATOR, PRODUCER, definitions
from consumer.settings import TopologySettings
from consumer.topology import topology

REPOSITORY = Path(__file__).parents[2]
FILE = REPOSITORY / "deploy/rabbitmq/definitions.json"
OVERLAY = REPOSITORY / "deploy/kubernetes/overlays/production/kustomization.yaml"
PARTITIONS = int(re.findall(r"TILES_PARTITIONS=(\d+)", OVERLAY.read_text())[0])
WANTED = topology(TopologySettings(partitions=PARTITIONS))
PARTITION_QUEUES = {queue.name for queue in WANTED.partitions}
HEARD = {"tiles.completed.0123456789abcdef"}
EVERYTHING = {x.name for x in WANTED.exchanges + WANTED.queues} | HEARD
# Other partitions, of the time while their number is changed.
OTHERS = {"tiles.00", "tiles.256.255"}
# The default exchange is called amq.default, and leads to every queue.
FOREIGN = {"amq.default", "tilesX00", "tiles2", "tilescompleted.0", "more.tiles.00"}


def test_the_file_is_for_the_partitions_of_production(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["topology", "show", "--definitions", "--partitions", str(PARTITIONS)]
    assert cli.main(arguments) == 0
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
    ("user", "configure", "write", "read"),
    [
        (
            CONSUMER,
            set(),
            {"tiles.parking", "tiles.events", "tiles.parked"},
            {"tiles", f"tiles.{PARTITIONS}"} | PARTITION_QUEUES | OTHERS,
        ),
        (PRODUCER, HEARD, {"tiles"} | HEARD, {"tiles.events"} | HEARD),
        (OPERATOR, EVERYTHING | OTHERS, EVERYTHING | OTHERS, EVERYTHING | OTHERS),
        (MONITOR, set(), set(), set()),
    ],
)
def test_a_user_may_do_what_it_must_and_nothing_else(
    user: str, configure: set[str], write: set[str], read: set[str]
) -> None:
    (rights,) = [x for x in definitions(WANTED, "/")["permissions"] if x["user"] == user]
    names = EVERYTHING | OTHERS | FOREIGN
    allowed = {
        act: {x for x in names if re.search(rights[act], x)}
        for act in ("configure", "write", "read")
    }
    assert allowed == {"configure": configure, "write": write, "read": read}


def test_only_the_monitor_sees_the_management_pages() -> None:
    tags = {user["name"]: user["tags"] for user in definitions(WANTED, "/")["users"]}
    assert tags == {CONSUMER: "", PRODUCER: "", OPERATOR: "", MONITOR: "monitoring"}


def test_nobody_gets_in_before_a_password_is_given() -> None:
    assert {user["password_hash"] for user in definitions(WANTED, "/")["users"]} == {""}
