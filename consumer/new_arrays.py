"""What a message says of an array that does not exist: its layout, and the metadata to be made.

Pure: nothing is read or written.
"""

import secrets
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from consumer.blocks import shown
from consumer.contract import ArrayEntry, Codec, as_scalar
from consumer.errors import InvalidMessage
from consumer.ledger_format import LEDGER_ID
from consumer.placement import Layout, automatic_chunks, automatic_shards

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer

DEFAULT_DTYPE = np.dtype("float32")
NOTHING: "Mapping[str, Buffer]" = MappingProxyType({})
_CODEC_ARGUMENT = {"transpose": "filters", "bytes": "serializer"}


def new_layout(entry: ArrayEntry) -> Layout:
    """Return the layout of an array that is to be made.

    Raises
    ------
    InvalidMessage
        Where the shards do not fit chunks that were not given.
    """
    dtype = np.dtype(entry.dtype) if entry.dtype else DEFAULT_DTYPE
    chunks = entry.chunks or automatic_chunks(entry.axes, entry.shape)
    shards = entry.shards
    if shards == "auto":
        shards = automatic_shards(entry.axes, entry.shape, chunks, dtype.itemsize)
    if shards and any(shard % chunk for shard, chunk in zip(shards, chunks, strict=True)):
        raise InvalidMessage(
            f"shards {shown(shards)} must be whole multiples of the automatic chunks "
            f"{shown(chunks)}; give chunks too"
        )
    return Layout(entry.axes, entry.shape, dtype, chunks, shards)


def new_metadata(entry: ArrayEntry, layout: Layout) -> "dict[str, Buffer]":
    """Return the metadata of an array and of the groups above, by their paths."""
    groups = ["", *parents(entry.array)]
    made: dict[str, Buffer] = {}
    memory = MemoryStore(made)
    for group in groups:
        zarr.create_group(memory, path=group)
    fill = 0 if entry.fill_value is None else entry.fill_value
    zarr.create_array(
        memory,
        name=entry.array,
        shape=layout.shape,
        dtype=layout.dtype,
        chunks=layout.chunks,
        shards=layout.shards,
        fill_value=as_scalar(fill, layout.dtype, "fill_value"),
        # A copy of another's attributes may bring that one's: it is replaced.
        attributes={**(entry.attributes or {}), LEDGER_ID: secrets.token_hex(8)},
        dimension_names=list(entry.axes),
        **_codec_arguments(entry.codecs),
    )
    return {path: made[metadata_key(path)] for path in (*groups, entry.array)}


def metadata_key(path: str) -> str:
    """Return the key in a store of the metadata of what stands at a path."""
    return f"{path}/zarr.json".lstrip("/")


def _codec_arguments(codecs: tuple[Codec, ...] | None) -> dict[str, Any]:
    """Return zarr's arguments; codecs that are not given stay zarr's defaults."""
    if codecs is None:
        return {}
    arguments: dict[str, Any] = {"compressors": []}
    for codec in codecs:
        plain = codec.model_dump(mode="json", exclude_none=True)
        argument = _CODEC_ARGUMENT.get(codec.name, "compressors")
        if argument == "serializer":
            arguments[argument] = plain
        else:
            arguments.setdefault(argument, []).append(plain)
    return arguments


def parents(path: str) -> Iterator[str]:
    """Yield the paths above a path in a store, outermost first, but not the store's root."""
    segments = path.split("/")
    for depth in range(1, len(segments)):
        yield "/".join(segments[:depth])
