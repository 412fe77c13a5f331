"""Reads a safetensors document in place, trusting none of it; writes one with one copy, where the
library makes three.

The format (https://huggingface.co/docs/safetensors): 8 bytes of little-endian header length, a
JSON header naming each tensor's dtype, shape and byte range, then the tensors without a gap.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic_core

from consumer.errors import TooLarge, Undecodable

MAX_HEADER_BYTES = 1 << 20
_LENGTH_BYTES = 8
_MAX_NDIM = 8
_METADATA = "__metadata__"
_DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write(tensors: Sequence[npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return a document of the tensors `"0"` … `"N-1"` and string metadata.

    Raises
    ------
    Undecodable, TooLarge
        Where `read` would not take it.
    """
    little = [_little(str(i), tensor) for i, tensor in enumerate(tensors)]
    # Where items are large comes first, as the library does, so that each tensor is aligned.
    order = sorted(range(len(little)), key=lambda i: -little[i].itemsize)
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    stop = 0
    for i in order:
        start, stop = stop, stop + little[i].nbytes
        header[str(i)] = {
            "dtype": _NAMES[little[i].dtype],
            "shape": little[i].shape,
            "data_offsets": [start, stop],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    data = [little[i].reshape(-1).view(np.uint8).data for i in order]
    body = b"".join((len(text).to_bytes(_LENGTH_BYTES, "little"), text, *data))
    read(body)
    return body


def read(body: bytes) -> tuple[list[npt.NDArray[Any]], dict[str, str]]:
    """Return views into `body` of the tensors `"0"` … `"N-1"`, and the metadata.

    Raises
    ------
    Undecodable
        Where the document does not hold together.
    TooLarge
        Where the header is longer than `MAX_HEADER_BYTES`.
    """
    if len(body) < _LENGTH_BYTES:
        raise Undecodable(f"a body of {len(body)} bytes is too short for a safetensors document")
    header_bytes = int.from_bytes(body[:_LENGTH_BYTES], "little")
    data_start = _LENGTH_BYTES + header_bytes
    if data_start > len(body):
        raise Undecodable(
            f"the safetensors header length {header_bytes} leaves the body of {len(body)} bytes"
        )
    if header_bytes > MAX_HEADER_BYTES:
        raise TooLarge(
            f"the safetensors header has {header_bytes} bytes; at most {MAX_HEADER_BYTES} are "
            "read; send fewer tiles in one message"
        )
    header = _parsed(body[_LENGTH_BYTES:data_start])
    metadata = _metadata(header.pop(_METADATA, {}))
    spans = [_span(name, header) for name in _names(header)]
    _check_contiguous(spans, len(body) - data_start)
    return [_view(body, data_start, *span) for span in spans], metadata


_Span = tuple[np.dtype[Any], tuple[int, ...], int, int]


def check_dtype(name: str, dtype: np.dtype[Any]) -> None:
    """Check that a tensor of this dtype can be written.

    Raises
    ------
    Undecodable
        In the words of `read`.
    """
    if dtype.newbyteorder("<") not in _NAMES:
        raise _unknown_dtype(name, f"{dtype.kind.upper()}{8 * dtype.itemsize}")


def _unknown_dtype(name: str, dtype: Any) -> Undecodable:
    return Undecodable(
        f"tensor {name!r} has the unknown dtype {_shown(dtype)}; known are {', '.join(_DTYPES)}"
    )


def _little(name: str, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    check_dtype(name, tensor.dtype)
    return np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        header = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Undecodable(f"the safetensors header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise Undecodable(f"the safetensors header is a {type(header).__name__}, not an object")
    return header


def _metadata(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise Undecodable(f"the safetensors {_METADATA} is not an object of strings")
    return found


def _names(header: Mapping[str, Any]) -> list[str]:
    names = [str(i) for i in range(len(header))]
    for name in names:
        if name not in header:
            raise Undecodable(
                f"the document's {len(names)} tensors must be named '0' to '{len(names) - 1}'; "
                f"{name!r} is missing, found {sorted(header)[:8]}"
            )
    return names


def _span(name: str, header: Mapping[str, Any]) -> _Span:
    entry = header[name]
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Undecodable(
            f"tensor {name!r} must have exactly dtype, shape and data_offsets: {_shown(entry)}"
        )
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _unknown_dtype(name, entry["dtype"])
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _whole_numbers(shape, 1) or not 1 <= len(shape) <= _MAX_NDIM:
        raise Undecodable(
            f"tensor {name!r} has the shape {_shown(shape)}; it must be a list of 1 to "
            f"{_MAX_NDIM} whole numbers above zero"
        )
    if not _whole_numbers(offsets, 0) or len(offsets) != 2:
        raise Undecodable(
            f"tensor {name!r} has the data_offsets {_shown(offsets)}; "
            "they must be two whole numbers, not negative"
        )
    start, stop = offsets
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise Undecodable(
            f"tensor {name!r} of shape {_shown(shape)} and dtype {entry['dtype']} does not fill "
            f"the bytes {_shown(offsets)}"
        )
    return dtype, tuple(shape), start, stop


def _whole_numbers(found: Any, least: int) -> bool:
    # By type, since True is an integer too.
    return (
        isinstance(found, list)
        and {*map(type, found)} <= {int}
        and min(found, default=least) >= least
    )


def _check_contiguous(spans: Sequence[_Span], data_bytes: int) -> None:
    end = 0
    for start, stop in sorted((start, stop) for _, _, start, stop in spans):
        if start != end:
            raise Undecodable(
                f"the tensors' byte ranges overlap or leave a gap: one starts at {start}, "
                f"the one before ends at {end}"
            )
        end = stop
    if end != data_bytes:
        raise Undecodable(f"the tensors end at byte {end}, the body's data at {data_bytes}")


def _view(
    body: bytes,
    data_start: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    start: int,
    stop: int,
) -> npt.NDArray[Any]:
    count = (stop - start) // dtype.itemsize
    if dtype.kind == "b" and np.frombuffer(body, np.uint8, count, data_start + start).max() > 1:
        raise Undecodable("a tensor of dtype BOOL holds a byte that is neither 0 nor 1")
    return np.frombuffer(body, dtype, count, data_start + start).reshape(shape)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
