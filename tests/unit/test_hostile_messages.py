"""Invariant 6, in small: no message touches a path outside the root, or costs the connection.

Each check is shown to see the fault that it is there for.
"""

import struct
from pathlib import Path

import pika
import pytest

from consumer import keys
from consumer.arrays import open_array, open_store
from consumer.connection import UNREADABLE_HEADERS, prepare_pika
from consumer.contract import build
from consumer.errors import UnsafePath

OUTSIDE = ("../evil.zarr", "a/../../evil.zarr", "/evil.zarr")


def _write_a_tile(root: Path, store: str) -> None:
    """Do with a message what the consumer does, up to the array's creation."""
    fields = {
        "store": store,
        "array": "img",
        "axes": "YX",
        "shape": [4, 4],
        "tiles": [{"stitch_coords": [0, 0]}],
    }
    entry = build(fields)
    opened = open_store(root, entry.store, file_mode=0o644, folder_mode=0o755)
    array = open_array(opened, entry, write_empty_chunks=True, max_block_bytes=1 << 20)
    array.metadata.make()


def _outside(folder: Path, root: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_relative_to(root)]


@pytest.mark.parametrize("store", OUTSIDE)
def test_no_store_key_leads_outside_the_root(tmp_path: Path, store: str) -> None:
    root = tmp_path / "a" / "root"
    root.mkdir(parents=True)
    before = _outside(tmp_path, root)
    with pytest.raises(UnsafePath):
        _write_a_tile(root, store)
    assert _outside(tmp_path, root) == before


def test_the_check_sees_a_key_that_leads_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "a" / "root"
    root.mkdir(parents=True)
    before = _outside(tmp_path, root)
    monkeypatch.setattr(keys, "_segments", lambda name, *_: name.split("/"))
    try:
        _write_a_tile(root, "../evil.zarr")
    finally:
        keys.check_store_key.cache_clear()
    assert _outside(tmp_path, root) != before


def _properties_with_a_timestamp_beyond_the_calendar() -> bytes:
    table = b"\x04when" + b"T" + struct.pack(">Q", 10**15)
    flags = pika.BasicProperties.FLAG_HEADERS
    return struct.pack(">HI", flags, len(table)) + table


def test_headers_that_pika_cannot_decode_do_not_raise_into_the_connection() -> None:
    prepare_pika()
    properties = pika.BasicProperties()
    properties.decode(_properties_with_a_timestamp_beyond_the_calendar())
    assert properties.headers == {UNREADABLE_HEADERS: True}


def test_without_our_care_those_headers_would_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_pika()
    monkeypatch.setattr(
        pika.BasicProperties, "decode", pika.BasicProperties.decode.__closure__[0].cell_contents
    )
    with pytest.raises((ValueError, OverflowError)):
        pika.BasicProperties().decode(_properties_with_a_timestamp_beyond_the_calendar())
