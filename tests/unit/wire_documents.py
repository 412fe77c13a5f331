"""Messages and safetensors documents, good and broken, for the unit tests of the wire contract."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from consumer.contract import CONTENT_TYPE, MESSAGE_TYPE
from consumer.message import Envelope

STORE = "plate7/d_output.zarr"


def tile(**changes: Any) -> dict[str, Any]:
    """Return one tile's entry with `changes`."""
    return {"stitch_coords": [0, 0]} | changes


def fields(**changes: Any) -> dict[str, Any]:
    """Return the entry of one good message of one tile, YX, with `changes`."""
    good = {"store": STORE, "array": "g1/img", "axes": "YX", "shape": [64, 48], "tiles": [tile()]}
    return good | changes


def span(
    start: Any = 0, stop: Any = 6, shape: Any = (1, 2, 3), dtype: Any = "U8"
) -> dict[str, Any]:
    """Return one tensor's entry in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def document(header: Any, data: bytes = b"") -> bytes:
    """Return a safetensors document of a header, good or not, and its data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def unchecked(entry: Mapping[str, Any], arrays: Sequence[npt.NDArray[Any]]) -> bytes:
    """Return the body that a producer without any checks would send."""
    named = {str(i): array for i, array in enumerate(arrays)}
    return bytes(save(named, {"tiles": json.dumps(entry, separators=(",", ":"))}))


def envelope(**changes: Any) -> Envelope:
    """Return the envelope of one good message with `changes`."""
    good: dict[str, Any] = {
        "routing_key": STORE,
        "type": MESSAGE_TYPE,
        "content_type": CONTENT_TYPE,
    }
    return Envelope(**good | changes)


def counting(*shape: int, dtype: str = "uint8") -> npt.NDArray[Any]:
    """Return an array whose voxels count from 0."""
    return np.arange(int(np.prod(shape))).astype(dtype).reshape(shape)
