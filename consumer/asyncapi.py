"""The wire contract as documents for other languages: AsyncAPI 3 and JSON Schema.

Generated from the models in `consumer.contract` and `consumer.events`, which are what is checked.
Owns no more than the descriptions.
"""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from consumer.contract import (
    CHECKSUM_HEADER,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    MESSAGE_TYPE,
    TilesEntry,
)
from consumer.errors import ParkError
from consumer.events import CONTENT_TYPE as EVENT_CONTENT_TYPE
from consumer.events import ArrayCompleted, ArrayEvent, ArrayProgress, TileParked, events_exchange
from consumer.parking import HEADER_PREFIX

PREFIX = "tiles"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_EVENTS: tuple[type[ArrayEvent] | type[TileParked], ...] = (
    ArrayCompleted,
    ArrayProgress,
    TileParked,
)

FIELDS = {
    "store": "Store key: path below the output root; only its last segment ends in .zarr. Also the "
    "routing key. Unicode NFC, no empty, . or .. segment, at most 255 bytes.",
    "array": "Groups and name inside the store, separated by /; created as needed.",
    "axes": "The array's axes: some of STCZYX in that order, always with YX.",
    "shape": "Voxels along each axis.",
    "dtype": "The array's dtype; default: float32, or whatever is stored.",
    "chunks": "Voxels along each axis; default: 128 or less along Z, Y, X and 1 elsewhere.",
    "shards": "Voxels along each axis, whole multiples of the chunks; auto: about 16 MiB; default: "
    "none.",
    "source": "What was predicted, e.g. a URI: one for each array; a second one is parked.",
    "run": "Which prediction this is: one for each array; a second one is parked.",
    "fill_value": "Value of voxels that no tile fills; used when the array is created.",
    "codecs": "Zarr v3 codecs; used when the array is created. Transposes, then at most one bytes, "
    "then compressors.",
    "attributes": "Zarr attributes, at most 16 KiB of JSON; used when the array is created.",
    "tiles": "The message's tiles, in the order of the tensors.",
    "sent_ms": "When the message was sent, milliseconds of the Unix epoch, for metrics.",
    "stitch_coords": "(Z)YX, voxels: where the crop's first voxel goes in the array.",
    "crop_coords": "(Z)YX, voxels: the crop's first voxel in the tile; with crop_size.",
    "crop_size": "(Z)YX, voxels: the part of the tile to keep; absent: all of it.",
    "sample_idx": "s * T + t; required where the axes have S or T, else absent.",
    "channel": "The first channel that the tile's channels fill.",
    "fill": "One value for the whole crop, which then has crop_size, one channel and no tensor.",
}
PARKING_HEADERS = {
    "reason": "Why it can never be written, in a word.",
    "detail": "Why, with the value at fault.",
    "routing-key": "The store key that it was published with.",
    "parked-ms": "When it was parked, milliseconds of the Unix epoch.",
    "parked-by": "Which consumer parked it.",
    "parking-id": "The same for the same parking, which may be published more than once.",
}
_BODY = (
    "A safetensors document (https://huggingface.co/docs/safetensors): 8 bytes of little-endian "
    "header length, the JSON header, the tensors without a gap. Tensors are named 0, 1, …, one for "
    "each tile without fill, in order, with the axes C(Z)YX. Its __metadata__ has the key tiles: "
    "a string of JSON as TilesEntry says. At most 16 MiB, unless the consumer's settings say else."
)


def as_text(document: dict[str, Any]) -> str:
    """Return a document as it is printed and committed."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def tiles_schema() -> dict[str, Any]:
    """Return the JSON Schema of what a message says of its tiles."""
    schema = _described(TilesEntry.model_json_schema())
    return {"$schema": DIALECT, "title": f"{MESSAGE_TYPE}: the JSON under tiles"} | {
        name: value for name, value in schema.items() if name != "title"
    }


def document() -> dict[str, Any]:
    """Return the AsyncAPI document, from the consumer's side."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "zarr-tile-consumer",
            "version": "1.0.0",
            "description": "Takes predicted image tiles from RabbitMQ and stitches them into Zarr. "
            f"Names of exchanges and queues begin with TILES_TOPOLOGY_PREFIX, here {PREFIX}.",
            "license": {"name": "BSD-3-Clause"},
        },
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def _channels() -> dict[str, Any]:
    events = {
        _camel(event.event): _channel(
            f"{event.event}.{{storeKey}}", _camel(event.event), events_exchange(PREFIX)
        )
        for event in _EVENTS
    }
    return {
        "tiles": _channel("{storeKey}", "tiles", PREFIX),
        "parked": _channel("{storeKey}", "parkedTiles", f"{PREFIX}.parking"),
        **events,
    }


def _channel(address: str, message: str, exchange: str) -> dict[str, Any]:
    return {
        "address": address,
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
        "parameters": {"storeKey": {"description": FIELDS["store"]}},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange, "type": "topic", "durable": True},
            }
        },
    }


def _operations() -> dict[str, Any]:
    tiles = _operation("receive", "tiles", "Publish with confirms, mandatory and persistent.")
    tiles["bindings"] = {"amqp": {"deliveryMode": 2, "mandatory": True, "ack": True}}
    parked = "What can never be written, unchanged, with the reason in its headers."
    events = {
        f"announce{_camel(event.event)[0].upper()}{_camel(event.event)[1:]}": _operation(
            "send", _camel(event.event), f"{_first_line(event)} At least once."
        )
        for event in _EVENTS
    }
    return {"takeTiles": tiles, "parkTiles": _operation("send", "parked", parked), **events}


def _operation(action: str, channel: str, summary: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
    }


def _messages() -> dict[str, Any]:
    checksum = {
        "type": "integer",
        "minimum": 0,
        "maximum": 2**32 - 1,
        "description": "Optional: CRC-32C (Castagnoli) of the body as sent.",
    }
    tiles = _tiles_message({CHECKSUM_HEADER: checksum})
    parked = _tiles_message({CHECKSUM_HEADER: checksum} | _parking_headers())
    events = {_camel(event.event): _event_message(event) for event in _EVENTS}
    return {"tiles": tiles, "parkedTiles": parked, **events}


def _tiles_message(headers: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": MESSAGE_TYPE,
        "contentType": CONTENT_TYPE,
        "description": f"{_BODY} content_encoding: absent, or {CONTENT_ENCODING} for the body as a "
        "whole. message_id, app_id and timestamp are optional, and kept when parked.",
        "headers": {"type": "object", "properties": headers},
        "payload": {"type": "string", "format": "binary", "description": _BODY},
        "bindings": {"amqp": {"messageType": MESSAGE_TYPE}},
        "x-tiles-json": {"$ref": "#/components/schemas/TilesEntry"},
    }


def _parking_headers() -> dict[str, Any]:
    types: dict[str, dict[str, Any]] = {
        "reason": {"type": "string", "enum": sorted(e.reason for e in ParkError.__subclasses__())},
        "parked-ms": {"type": "integer"},
    }
    return {
        f"{HEADER_PREFIX}{name}": types.get(name, {"type": "string"}) | {"description": meaning}
        for name, meaning in PARKING_HEADERS.items()
    }


def _event_message(event: type[BaseModel]) -> dict[str, Any]:
    return {
        "name": event.__name__,
        "contentType": EVENT_CONTENT_TYPE,
        "summary": _first_line(event),
        "payload": {"$ref": f"#/components/schemas/{event.__name__}"},
    }


def _schemas() -> dict[str, Any]:
    wanted: list[tuple[type[BaseModel], Any]] = [(TilesEntry, "validation")]
    wanted += [(event, "serialization") for event in _EVENTS]
    _, found = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = _described(found["$defs"])
    return schemas


def _described(schema: Any) -> Any:
    """Return a schema with what its fields mean, and without OpenAPI's discriminators."""
    if isinstance(schema, list):
        return [_described(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return dict(_described_items(schema))


def _described_items(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in schema.items():
        if name == "properties" and isinstance(value, dict):
            yield name, {key: _property(key, part) for key, part in value.items()}
        elif name == "description":
            # Of docstrings the summary: the fields are described where they stand.
            yield name, " ".join(value.partition("\n\n")[0].split())
        elif name not in {"discriminator", "title"}:
            yield name, _described(value)


def _property(name: str, schema: Any) -> Any:
    described = _described(schema)
    return {"description": FIELDS[name], **described} if name in FIELDS else described


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


def _camel(name: str) -> str:
    first, *rest = name.split(".")
    return first + "".join(part.capitalize() for part in rest)
