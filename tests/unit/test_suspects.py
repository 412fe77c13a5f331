"""By what a message that may have killed a consumer is known again."""

from types import SimpleNamespace
from typing import Any

import pytest

from consumer.blocks import DeliveryId
from consumer.delivery import Delivery
from consumer.lone import suspect
from consumer.message import Envelope

BODY = b"tiles"


def delivery(
    *, tag: int = 1, count: int = 2, message_id: str | bytes | None = "7", **changed: Any
) -> Delivery:
    """Return a delivery of a message."""
    said: dict[str, Any] = {
        "routing_key": "a.zarr",
        "type": "tiles.v1",
        "content_type": "application/x-safetensors",
        "content_encoding": None,
        "headers": {"crc32c": 1},
    }
    properties = SimpleNamespace(message_id=message_id)
    return Delivery(DeliveryId(1, tag), Envelope(**said | changed), properties, count)


@pytest.mark.parametrize(("count", "suspected"), [(0, False), (1, False), (2, True), (50, True)])
def test_a_message_is_suspect_from_its_third_delivery_on(count: int, suspected: bool) -> None:
    assert (suspect(delivery(count=count), BODY) is not None) == suspected


def test_each_delivery_of_a_message_has_the_same_fingerprint() -> None:
    first = suspect(delivery(), BODY)
    again = delivery(tag=9, count=5, headers={"crc32c": 1, "x-delivery-count": 5})
    assert suspect(again, BODY) == first


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(delivery(routing_key="b.zarr"), id="routing-key"),
        pytest.param(delivery(message_id="8"), id="message-id"),
        pytest.param(delivery(message_id=None), id="no-message-id"),
        pytest.param(delivery(message_id=b"\xff"), id="message-id-that-is-not-text"),
        pytest.param(delivery(type="tiles.v2"), id="type"),
        pytest.param(delivery(content_encoding="zstd"), id="content-encoding"),
        pytest.param(delivery(headers={"crc32c": 2}), id="checksum"),
        pytest.param(delivery(headers={}), id="no-checksum"),
        pytest.param(delivery(routing_key="\udcff"), id="routing-key-with-a-lone-surrogate"),
    ],
)
def test_another_message_has_another_fingerprint(other: Delivery) -> None:
    assert suspect(other, BODY) != suspect(delivery(), BODY)


def test_another_body_has_another_fingerprint() -> None:
    assert suspect(delivery(), BODY + b"!") != suspect(delivery(), BODY)


def test_headers_of_any_depth_are_no_obstacle() -> None:
    nested: Any = 1
    for _ in range(100_000):
        nested = [nested]
    assert suspect(delivery(headers={"crc32c": nested}), BODY) is not None
