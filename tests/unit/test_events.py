"""What the consumer announces: who it is for, and that the same thing said twice is the same."""

import json
from typing import Any

import pika
import pytest

from consumer.errors import Undecodable
from consumer.events import ArrayCompleted, ArrayProgress, TileParked
from consumer.parked import ParkedMessage
from consumer.parking import parked_event, parked_properties

COMPLETED = ArrayCompleted(store="p/a.zarr", array="x", run="1", ledger="l")


def test_a_completion_has_one_id_however_often_it_is_announced() -> None:
    again = ArrayCompleted(store="p/a.zarr", array="x", source="elsewhere", run="2", ledger="l")

    assert again.message_id == COMPLETED.message_id


@pytest.mark.parametrize(
    "changed", [{"store": "p/b.zarr"}, {"array": "y"}, {"ledger": "m"}], ids=str
)
def test_another_store_array_or_ledger_has_another_id(changed: dict[str, str | None]) -> None:
    assert COMPLETED.model_copy(update=changed).message_id != COMPLETED.message_id


def test_the_id_stands_in_the_body_and_what_is_unknown_there_is_ignored() -> None:
    body = json.loads(COMPLETED.model_dump_json())

    assert body["message_id"] == COMPLETED.message_id
    assert ArrayCompleted.model_validate_json(json.dumps(body | {"new": 1})) == COMPLETED


def test_an_event_is_routed_by_its_kind_and_store_key() -> None:
    progress = ArrayProgress(store="p/a.zarr", array="x", filled_voxels=1, total_voxels=2)
    parked = TileParked(
        store="?", reason="invalid", detail="", parked_ms=1, parked_by="c", parking_id="1"
    )

    assert COMPLETED.routing_key == "array.completed.p/a.zarr"
    assert progress.routing_key == "array.progress.p/a.zarr"
    assert parked.routing_key == "tile.parked.?"


def test_a_routing_key_is_never_longer_than_amqp_carries() -> None:
    key = COMPLETED.model_copy(update={"store": "ü" * 125 + ".zarr"}).routing_key

    assert 250 < len(key.encode()) <= 255


def test_a_copy_has_nothing_that_the_broker_would_refuse() -> None:
    headers: dict[str, Any] = {"CC": ["tiles"], "BCC": "tiles", "cc": "kept"}
    headers |= {"x-delivery-count": 3, "x-acquired-count": 4}
    sent = pika.BasicProperties(reply_to="amq.rabbitmq.reply-to", headers=headers)
    error = Undecodable("no document")
    said = parked_properties(sent, error, parking_id="p-1", routing_key="a.zarr", by="me")
    foreign = {name for name in said["headers"] if not name.startswith("x-tiles-")}
    assert foreign == {"CC", "cc"}
    assert said["reply_to"] is None
    sent.reply_to = "answers"
    said = parked_properties(sent, error, parking_id="p-1", routing_key="a.zarr", by="me")
    assert said["reply_to"] == "answers"


def test_what_the_broker_parked_is_replayed_as_nobodys() -> None:
    sent = pika.BasicProperties(user_id="someone", app_id="unet", headers={"own": 1})
    original = ParkedMessage(1, "a.zarr", sent, b"").original
    assert (original.user_id, original.app_id, original.headers) == (None, "unet", {"own": 1})
    assert sent.user_id == "someone"


@pytest.mark.parametrize("identity", ["m-1", b"\xff-1", None])
def test_a_parked_message_is_told_of_whatever_its_id(identity: str | bytes | None) -> None:
    said = parked_properties(
        pika.BasicProperties(
            message_id=identity, headers={"x-tiles-foreign": 1, "other": 2, b"\xff": 3}
        ),
        Undecodable("no document"),
        parking_id="p-1",
        routing_key="a/b.zarr",
        by="me",
    )
    event = parked_event(pika.BasicProperties(**said))
    assert event.store == "a/b.zarr"
    assert (event.reason, event.detail) == ("undecodable", "no document")
    assert (event.parked_by, event.parking_id) == ("me", "p-1")
    assert event.identity == "p-1"
    assert event.message_id == {"m-1": "m-1", b"\xff-1": "\ufffd-1", None: None}[identity]
