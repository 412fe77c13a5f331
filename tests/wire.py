"""Header tables as they are on the wire, which pika cannot decode for every producer's message."""

import contextlib
import struct
from collections.abc import Iterator
from typing import Any

import pika
import pytest

_FIXED_SIZES = {
    **dict.fromkeys([b"t", b"b", b"B"], 1),
    **dict.fromkeys([b"s", b"U", b"u"], 2),
    **dict.fromkeys([b"I", b"i", b"f"], 4),
    **dict.fromkeys([b"L", b"l", b"d", b"T"], 8),
    b"D": 5,
    b"V": 0,
}

Headers = dict[bytes, bytes]


def fields_of(table: bytes) -> Headers:
    """Return the encoded value of each field of an encoded header table, by name."""
    found: Headers = {}
    at = 0
    while at < len(table):
        start = at + 1 + table[at]
        name, kind = table[at + 1 : start], table[start : start + 1]
        if kind in _FIXED_SIZES:
            at = start + 1 + _FIXED_SIZES[kind]
        else:
            at = start + 5 + int(struct.unpack_from(">I", table, start + 1)[0])
        found[name] = _widened(kind, table[start:at])
    return found


def _widened(kind: bytes, value: bytes) -> bytes:
    """Return a single as the double of the same value, which a copy may have instead."""
    return b"d" + struct.pack(">d", *struct.unpack_from(">f", value, 1)) if kind == b"f" else value


def split_headers(encoded: bytes) -> tuple[bytes, bytes]:
    """Return encoded basic properties with an empty header table, and the table without length."""
    flags = struct.unpack_from(">H", encoded)[0]
    at = 2
    for flag in (
        pika.BasicProperties.FLAG_CONTENT_TYPE,
        pika.BasicProperties.FLAG_CONTENT_ENCODING,
    ):
        if flags & flag:
            at += 1 + encoded[at]
    if not flags & pika.BasicProperties.FLAG_HEADERS:
        return encoded, b""
    end = at + 4 + int(struct.unpack_from(">I", encoded, at)[0])
    return encoded[:at] + bytes(4) + encoded[end:], encoded[at + 4 : end]


@contextlib.contextmanager
def undecoded_headers() -> Iterator[None]:
    """Have pika leave header tables alone: `headers` is a table of encoded values."""
    decode = pika.BasicProperties.decode

    def tolerant(self: Any, encoded: bytes, offset: int = 0) -> Any:
        rest, table = split_headers(encoded[offset:])
        decode(self, rest)
        self.headers = fields_of(table)
        return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pika.BasicProperties, "decode", tolerant)
        yield
