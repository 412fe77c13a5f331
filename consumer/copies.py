"""Copies of messages for the parking queue: what of a message can be published again."""

import logging
import secrets
from collections.abc import Mapping
from typing import Any

import pika

from consumer.connection import UNREADABLE_HEADERS
from consumer.errors import ParkError
from consumer.parking import parked_properties

_FRAME_OVERHEAD = 20
_MAX_HEADER_DEPTH = 100

log = logging.getLogger(__name__)


def republishable(
    properties: Any,
    headers: Mapping[str, Any],
    error: ParkError,
    *,
    routing_key: str,
    by: str,
    frame_max: int,
) -> Any:
    """Return pika's properties of a message's copy, or None where it cannot be published again.

    Parameters
    ----------
    properties
        The message's own, as pika has them.
    headers : mapping
        Its headers.
    frame_max : int
        Largest frame agreed on, in bytes: properties must fit into one.
    """
    if UNREADABLE_HEADERS in headers or not _is_flat(headers):
        return None
    try:
        copied = pika.BasicProperties(
            **parked_properties(
                properties,
                error,
                parking_id=secrets.token_hex(8),
                routing_key=routing_key,
                by=by,
            )
        )
        size = sum(map(len, copied.encode())) + _FRAME_OVERHEAD
    except Exception:  # whatever a foreign header made of pika's encoder
        log.exception("a parked message's properties cannot be encoded; rejecting it")
        return None
    return copied if size <= frame_max else None


def _is_flat(headers: Any) -> bool:
    """Whether header tables and lists are nested little enough for pika's recursive encoder."""
    level = [headers]
    for _ in range(_MAX_HEADER_DEPTH):
        nested = [v for v in level if isinstance(v, dict | list)]
        if not nested:
            return True
        level = [x for v in nested for x in (v.values() if isinstance(v, dict) else v)]
    return False
