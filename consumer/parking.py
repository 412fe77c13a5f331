"""What a parked message carries: its own properties, and why, when and by whom it was parked."""

import time
from collections.abc import Mapping
from typing import Any

from consumer.errors import ParkError
from consumer.events import TileParked

HEADER_PREFIX = "x-tiles-"
PARKING_ID = f"{HEADER_PREFIX}parking-id"
MAX_DETAIL_BYTES = 1000
_DIRECT_REPLY = "amq.rabbitmq.reply-to"
_ROUTING_KEYS = {"CC", "BCC"}
_COUNTERS = {"x-delivery-count", "x-acquired-count"}
_KEPT = (
    "content_type",
    "content_encoding",
    "priority",
    "correlation_id",
    "reply_to",
    "message_id",
    "timestamp",
    "type",
    "app_id",
)


def parked_properties(
    properties: Any, error: ParkError, *, parking_id: str, routing_key: str, by: str
) -> dict[str, Any]:
    """Return AMQP's basic properties, by name, for the message's copy in the parking queue.

    The producer's expiration and user id are left out: the one would make the copy vanish, the
    other would have the broker refuse it from this user.
    """
    kept = {name: getattr(properties, name) for name in _KEPT}
    if kept["reply_to"] == _DIRECT_REPLY:
        # AMQP 1.0 lets it through; from here it is refused, and the channel closed.
        kept["reply_to"] = None
    return kept | {
        "delivery_mode": 2,
        "headers": _foreign(properties.headers or {})
        | {
            f"{HEADER_PREFIX}reason": error.reason,
            f"{HEADER_PREFIX}detail": _bounded(str(error)),
            f"{HEADER_PREFIX}routing-key": _bounded(routing_key),
            f"{HEADER_PREFIX}parked-ms": int(time.time() * 1000),
            f"{HEADER_PREFIX}parked-by": _bounded(by),
            PARKING_ID: parking_id,
        },
    }


def parked_event(properties: Any) -> TileParked:
    """Return the event that tells of a parked message, by the properties of its copy."""
    said = {
        name: properties.headers[f"{HEADER_PREFIX}{name.replace('_', '-')}"]
        for name in ("reason", "detail", "parked_ms", "parked_by", "parking_id", "routing_key")
    }
    identity = properties.message_id
    if isinstance(identity, bytes):  # as pika leaves what is not UTF-8
        identity = identity.decode(errors="replace")
    return TileParked(store=said.pop("routing_key"), message_id=identity, **said)


def _foreign(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers without ours of an earlier parking, and the queue's own counters."""
    return {
        name: value
        for name, value in headers.items()
        if not str(name).startswith(HEADER_PREFIX)
        and name not in _COUNTERS
        # Further routing keys that are none: AMQP 1.0 lets them through, as above.
        and (name not in _ROUTING_KEYS or isinstance(value, list))
    }


def _bounded(text: str) -> str:
    return text.encode(errors="replace")[:MAX_DETAIL_BYTES].decode(errors="ignore")
