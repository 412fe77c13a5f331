"""Opening and creating arrays: what is written is what zarr writes, what is wrong is refused."""

import errno
import itertools
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    TransposeCodec,
    ZstdCodec,
)
from zarr.storage import LocalStore

from consumer.arrays import OpenArray, Store, open_array, open_store
from consumer.contract import ArrayEntry
from consumer.coverage import Box
from consumer.errors import (
    ArrayMismatch,
    DamagedBlock,
    Fenced,
    InvalidMessage,
    ParkError,
    TooLarge,
    UnsafeCast,
    UnsafePath,
)
from consumer.ledger_format import LEDGER_ID
from consumer.message import check_kinds

KEY = "plate7/d.zarr"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The output root."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def store(root: Path) -> Store:
    """A store that does not exist yet."""
    return open_store(root, KEY, file_mode=0o644, folder_mode=0o755)


def entry(**changes: Any) -> ArrayEntry:
    """Return what a message says of an array, with `changes`."""
    said: dict[str, Any] = {"array": "g/img", "axes": "CYX", "shape": (2, 300, 150)} | changes
    return ArrayEntry.model_validate_json(ArrayEntry(store=KEY, **said).model_dump_json())


def opened(store: Store, said: ArrayEntry, *, write_empty_chunks: bool = True) -> OpenArray:
    """Open the array, and make it where it does not exist."""
    array = promised(store, said, write_empty_chunks=write_empty_chunks)
    array.metadata.make()
    return array


def promised(store: Store, said: ArrayEntry, *, write_empty_chunks: bool = True) -> OpenArray:
    """Open the array, which is yet to be made where it does not exist."""
    return open_array(store, said, write_empty_chunks=write_empty_chunks, max_block_bytes=64 << 20)


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by its path there."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return inode and time of change of everything below a folder."""
    nodes = (path for path in folder.rglob("*") if ".tiles" not in path.parts)
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in nodes}


# -- creating -----------------------------------------------------------------------------------

# What a message says, and the arguments that say the same to zarr's create_array.
CREATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing but axes and shape": ({}, {"chunks": (1, 128, 128)}),
    "dtype": ({"dtype": "uint16"}, {"dtype": "uint16", "chunks": (1, 128, 128)}),
    "bool": ({"dtype": "bool"}, {"dtype": "bool", "chunks": (1, 128, 128), "fill_value": False}),
    "chunks": ({"chunks": (2, 64, 50)}, {"chunks": (2, 64, 50)}),
    "shards": (
        {"chunks": (1, 50, 50), "shards": (2, 100, 150)},
        {"chunks": (1, 50, 50), "shards": (2, 100, 150)},
    ),
    "automatic shards": (
        {"shards": "auto"},
        {"chunks": (1, 128, 128), "shards": (1, 384, 256)},
    ),
    "fill value": ({"fill_value": 1.5}, {"chunks": (1, 128, 128), "fill_value": 1.5}),
    "fill value that is no number": (
        {"fill_value": "NaN"},
        {"chunks": (1, 128, 128), "fill_value": np.nan},
    ),
    "infinite fill value": (
        {"fill_value": "-Infinity", "dtype": "float64"},
        {"chunks": (1, 128, 128), "fill_value": -np.inf, "dtype": "float64"},
    ),
    "largest fill value": (
        {"fill_value": 2**64 - 1, "dtype": "uint64"},
        {"chunks": (1, 128, 128), "fill_value": 2**64 - 1, "dtype": "uint64"},
    ),
    "attributes": (
        {"attributes": {"a": [1, {"b": None}], "ü": "ß"}},
        {"chunks": (1, 128, 128), "attributes": {"a": [1, {"b": None}], "ü": "ß"}},
    ),
    "no codecs": ({"codecs": ()}, {"chunks": (1, 128, 128), "compressors": None}),
    "gzip": (
        {"codecs": ({"name": "gzip", "configuration": {"level": 3}},)},
        {"chunks": (1, 128, 128), "compressors": [GzipCodec(level=3)]},
    ),
    "gzip without its level": (
        {"codecs": ({"name": "gzip"},)},
        {"chunks": (1, 128, 128), "compressors": [GzipCodec()]},
    ),
    "blosc": (
        {
            "codecs": (
                {
                    "name": "blosc",
                    "configuration": {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle"},
                },
            )
        },
        {
            "chunks": (1, 128, 128),
            "compressors": [BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle", typesize=4)],
        },
    ),
    "zstd and crc32c": (
        {
            "codecs": (
                {"name": "zstd", "configuration": {"level": 7, "checksum": True}},
                {"name": "crc32c"},
            )
        },
        {
            "chunks": (1, 128, 128),
            "compressors": [ZstdCodec(level=7, checksum=True), Crc32cCodec()],
        },
    ),
    "transpose": (
        {"codecs": ({"name": "transpose", "configuration": {"order": (2, 0, 1)}},)},
        {
            "chunks": (1, 128, 128),
            "filters": [TransposeCodec(order=(2, 0, 1))],
            "compressors": None,
        },
    ),
    "big endian": (
        {"codecs": ({"name": "bytes", "configuration": {"endian": "big"}},)},
        {
            "chunks": (1, 128, 128),
            "serializer": BytesCodec(endian="big"),
            "compressors": None,
        },
    ),
    "everything at once": (
        {
            "dtype": "int16",
            "chunks": (1, 30, 50),
            "shards": (2, 60, 100),
            "fill_value": -1,
            "attributes": {"a": 1},
            "codecs": (
                {"name": "transpose", "configuration": {"order": (1, 2, 0)}},
                {"name": "bytes", "configuration": {"endian": "big"}},
                {"name": "gzip", "configuration": {"level": 1}},
                {"name": "crc32c"},
            ),
        },
        {
            "dtype": "int16",
            "chunks": (1, 30, 50),
            "shards": (2, 60, 100),
            "fill_value": -1,
            "attributes": {"a": 1},
            "filters": [TransposeCodec(order=(1, 2, 0))],
            "serializer": BytesCodec(endian="big"),
            "compressors": [GzipCodec(level=1), Crc32cCodec()],
        },
    ),
}


def by_zarr(folder: Path, path: str, **options: Any) -> None:
    """Create an array and the groups above it with plain zarr."""
    segments = path.split("/")
    for depth in range(len(segments)):
        zarr.create_group(LocalStore(folder), path="/".join(segments[:depth]))
    wanted: dict[str, Any] = {
        "shape": (2, 300, 150),
        "dtype": "float32",
        "fill_value": 0,
        "dimension_names": ["C", "Y", "X"],
    }
    zarr.create_array(LocalStore(folder), name=path, **wanted | options)


def with_id_of(array: OpenArray, options: dict[str, Any]) -> dict[str, Any]:
    """Return zarr's arguments with the id of a created array among the attributes."""
    attributes = options.get("attributes", {}) | {LEDGER_ID: array.ledger_id}
    return options | {"attributes": attributes}


@pytest.mark.parametrize(("said", "options"), CREATED.values(), ids=CREATED)
def test_created_metadata_is_byte_for_byte_what_zarr_writes(
    store: Store, tmp_path: Path, said: dict[str, Any], options: dict[str, Any]
) -> None:
    array = opened(store, entry(**said))
    by_zarr(tmp_path / "plain", "g/img", **with_id_of(array, options))
    assert files(store.path) == files(tmp_path / "plain")


@pytest.mark.parametrize("path", ["img", "g/img", "a/b/c1/d/e/f/g/h/i/j/k/l"])
def test_groups_are_created_as_zarr_writes_them(store: Store, tmp_path: Path, path: str) -> None:
    array = opened(store, entry(array=path))
    by_zarr(tmp_path / "plain", path, **with_id_of(array, {"chunks": (1, 128, 128)}))
    assert files(store.path) == files(tmp_path / "plain")


@pytest.mark.parametrize(("said", "options"), CREATED.values(), ids=CREATED)
def test_a_created_array_is_the_one_that_opening_it_finds(
    store: Store, said: dict[str, Any], options: dict[str, Any]
) -> None:
    created = opened(store, entry(**said))
    found = opened(store, entry())
    assert found.layout == created.layout
    assert found.layout.chunks == options["chunks"]
    assert found.layout.shards == options.get("shards")


def test_each_array_has_an_id_of_its_own_and_keeps_it(store: Store) -> None:
    ids = {path: opened(store, entry(array=path)).ledger_id for path in ("a", "b", "g/a")}
    assert len(set(ids.values())) == 3
    assert all(re.fullmatch(r"[0-9a-f]{16}", each) for each in ids.values())
    assert {path: opened(store, entry(array=path)).ledger_id for path in ids} == ids


def test_an_array_that_was_removed_and_made_anew_has_another_id(store: Store) -> None:
    before = opened(store, entry()).ledger_id
    (store.path / "g/img/zarr.json").unlink()
    assert opened(store, entry()).ledger_id != before


def test_the_id_of_another_array_is_not_taken_over_with_its_attributes(store: Store) -> None:
    attributes = dict(opened(store, entry(attributes={"a": 1})).array.attrs)
    copied = opened(store, entry(array="copy", attributes=attributes))
    assert copied.ledger_id != attributes[LEDGER_ID]
    assert dict(copied.array.attrs) == {"a": 1, LEDGER_ID: copied.ledger_id}


@pytest.mark.parametrize("attributes", [{}, {LEDGER_ID: 7}], ids=["none", "not a text"])
def test_an_array_of_others_has_no_id(store: Store, attributes: dict[str, Any]) -> None:
    by_zarr(store.path, "g/img", chunks=(1, 100, 100), attributes=attributes)
    assert opened(store, entry()).ledger_id == ""


@pytest.mark.parametrize("write_empty_chunks", [True, False])
def test_the_setting_for_empty_chunks_is_the_arrays(store: Store, write_empty_chunks: bool) -> None:
    array = opened(store, entry(), write_empty_chunks=write_empty_chunks).array
    assert array.config.write_empty_chunks is write_empty_chunks


def test_shards_must_be_multiples_of_chunks_that_are_chosen(store: Store) -> None:
    with pytest.raises(InvalidMessage, match=r"shards \[1, 100, 150\].*chunks \[1, 128, 128\]"):
        opened(store, entry(shards=(1, 100, 150)))


UNFIT: dict[str, tuple[str | None, Any]] = {
    "whole numbers beyond float32": (None, np.dtype("int32")),
    "floats in whole numbers": ("uint8", np.dtype("float32")),
    "value beyond the dtype": ("uint8", 256),
}


@pytest.mark.parametrize(("dtype", "kind"), UNFIT.values(), ids=UNFIT)
def test_an_array_that_could_not_take_the_tiles_is_not_created(
    store: Store, dtype: str | None, kind: Any
) -> None:
    said = entry(dtype=dtype)
    with pytest.raises(UnsafeCast):
        open_array(
            store,
            said,
            lambda layout: check_kinds([kind], layout.dtype),
            write_empty_chunks=True,
            max_block_bytes=64 << 20,
        )
    assert not store.path.exists()


def test_metadata_is_synced_before_it_is_renamed_into_place(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink()}")
        sync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append(f"from {source}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    opened(store, entry())
    sources = [event.removeprefix("from ") for event in events if event.startswith("from ")]
    assert len(sources) == 3
    assert all(events.index(f"sync {path}") < events.index(f"from {path}") for path in sources)


# -- opening what exists ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["img", "g/img", "g/h/img"])
def test_opening_changes_nothing(store: Store, path: str) -> None:
    opened(store, entry(array=path))
    before = stamps(store.path)
    opened(store, entry(array=path))
    assert stamps(store.path) == before


def test_existing_groups_are_not_written_again(store: Store) -> None:
    root = zarr.create_group(store.path, attributes={"of": "the store"})
    root.create_group("g", attributes={"of": "the group"})
    groups = [store.path / "zarr.json", store.path / "g/zarr.json"]
    before = [path.stat().st_ino for path in groups]
    opened(store, entry(array="g/h/img"))
    assert [path.stat().st_ino for path in groups] == before


DIMENSIONS: dict[str, tuple[Any, str]] = {
    "as the contract writes them": (("C", "Y", "X"), "CYX"),
    "small letters": (("c", "y", "x"), "CYX"),
    "none": (None, ""),
    "some": (("c", None, None), ""),
    "words": (("channel", "row", "column"), ""),
    "letters that are no axes": (("a", "b", "c"), ""),
}


@pytest.mark.parametrize(("names", "axes"), DIMENSIONS.values(), ids=DIMENSIONS)
def test_axes_are_the_stored_dimension_names_where_they_tell(
    store: Store, names: Any, axes: str
) -> None:
    by_zarr(store.path, "g/img", dimension_names=names)
    assert opened(store, entry(axes="SYX")).layout.axes == axes


def test_axes_that_no_dimension_names_tell_are_not_those_of_an_earlier_message(
    store: Store,
) -> None:
    by_zarr(store.path, "g/img", dimension_names=None)
    array = opened(store, entry(axes="YX", shape=(300, 150)))
    array.check(entry())


EXISTING: dict[str, dict[str, Any]] = {
    "format 3": {},
    "format 2": {"zarr_format": 2, "dimension_names": None},
    "format 2, big endian": {"zarr_format": 2, "dimension_names": None, "dtype": ">f4"},
    "format 2 in Fortran order": {"zarr_format": 2, "dimension_names": None, "order": "F"},
    "big endian": {"serializer": BytesCodec(endian="big")},
    "shards": {"chunks": (1, 50, 50), "shards": (1, 100, 100)},
}


def existing(store: Store, **options: Any) -> "zarr.Array[Any]":
    """Create an array with plain zarr."""
    wanted: dict[str, Any] = {
        "shape": (2, 300, 150),
        "chunks": (1, 100, 100),
        "dtype": "float32",
        "fill_value": 0.5,
        "dimension_names": ["C", "Y", "X"],
    } | options
    zarr.create_group(store.path, zarr_format=wanted.get("zarr_format", 3))
    return zarr.create_array(store.path, name="g/img", **wanted)


@pytest.mark.parametrize("options", EXISTING.values(), ids=EXISTING)
def test_an_array_of_any_kind_has_a_native_dtype(store: Store, options: dict[str, Any]) -> None:
    existing(store, **options)
    assert opened(store, entry()).layout.dtype == np.dtype("=f4")


@pytest.mark.parametrize("options", EXISTING.values(), ids=EXISTING)
def test_what_is_stored_is_read(store: Store, options: dict[str, Any]) -> None:
    values = np.arange(90000, dtype="float32").reshape(2, 300, 150)
    existing(store, **options)[:] = values
    box = Box((0, 90, 40), (2, 210, 150))
    np.testing.assert_array_equal(opened(store, entry()).read(box), values[box.slices])


@pytest.mark.parametrize("options", EXISTING.values(), ids=EXISTING)
def test_what_is_read_can_be_written_to(store: Store, options: dict[str, Any]) -> None:
    existing(store, **options)[:] = 3
    found = opened(store, entry()).read(Box((0, 0, 0), (1, 2, 3)))
    found[:] = 7
    assert found.dtype == np.dtype("=f4")
    assert found.dtype.isnative


@pytest.mark.parametrize("options", EXISTING.values(), ids=EXISTING)
def test_the_fill_value_is_read_where_nothing_is_stored(
    store: Store, options: dict[str, Any]
) -> None:
    existing(store, **options)
    found = opened(store, entry()).read(Box((0, 0, 0), (2, 300, 150)))
    np.testing.assert_array_equal(found, np.full((2, 300, 150), 0.5, "float32"))


@pytest.mark.parametrize("options", EXISTING.values(), ids=EXISTING)
def test_what_is_encoded_is_read_by_plain_zarr(store: Store, options: dict[str, Any]) -> None:
    plain = existing(store, **options)
    array = opened(store, entry())
    values = np.arange(90000, dtype="float32").reshape(2, 300, 150)
    whole = Box.of_shape(values.shape)
    store.commit.commit(array.encoder.encode(whole, values, [whole]))
    np.testing.assert_array_equal(np.asarray(plain[:]), values)


@pytest.mark.parametrize("options", EXISTING.values(), ids=EXISTING)
def test_an_array_that_stands_is_required_in_vain(store: Store, options: dict[str, Any]) -> None:
    existing(store, **options)
    array = opened(store, entry())
    whole = Box.of_shape((2, 300, 150))
    values = np.ones((2, 300, 150), "float32")
    store.commit.commit(array.encoder.encode(whole, values, [whole]), standing=["g/img"])
    array.metadata.require()


@pytest.mark.parametrize("options", EXISTING.values(), ids=EXISTING)
def test_an_array_that_was_removed_or_replaced_is_another(
    store: Store, options: dict[str, Any]
) -> None:
    existing(store, **options)
    array = opened(store, entry())
    shutil.rmtree(store.path)
    with pytest.raises(FileNotFoundError):
        array.metadata.require()
    existing(store, **options)
    with pytest.raises(FileNotFoundError, match="removed or replaced"):
        array.metadata.require()
    opened(store, entry()).metadata.require()


# -- damaged ------------------------------------------------------------------------------------

DAMAGES: dict[str, tuple[dict[str, Any], Callable[[bytes], bytes]]] = {
    "zstd": ({}, lambda content: b"\0" * len(content)),
    "zstd, cut": ({}, lambda content: content[: len(content) // 2]),
    "empty file": ({}, lambda _content: b""),
    "not compressed, cut": ({"compressors": None}, lambda content: content[:-1]),
    "checksum": (
        {"compressors": [Crc32cCodec()]},
        lambda content: bytes([content[0] ^ 1]) + content[1:],
    ),
    "shard's index": (
        {"chunks": (1, 50, 50), "shards": (1, 100, 100)},
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    ),
    "shard, cut": (
        {"chunks": (1, 50, 50), "shards": (1, 100, 100)},
        lambda content: content[: len(content) // 2],
    ),
    "chunk in a shard": (
        {"chunks": (1, 50, 50), "shards": (1, 100, 100)},
        lambda content: b"\0" * 64 + content[64:],
    ),
    "format 2": (
        {"zarr_format": 2, "dimension_names": None},
        lambda content: b"\0" * len(content),
    ),
    # Their decoders raise OSError, without a number.
    "gzip": ({"compressors": GzipCodec()}, lambda content: b"\0" * len(content)),
    "gzip, cut": ({"compressors": GzipCodec()}, lambda content: content[: len(content) // 2]),
    "bz2": (
        {"zarr_format": 2, "dimension_names": None, "compressors": numcodecs.BZ2()},
        lambda content: b"\0" * len(content),
    ),
}


@pytest.mark.parametrize(("options", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_what_cannot_be_decoded_is_reported_with_its_place(
    store: Store, options: dict[str, Any], damage: Callable[[bytes], bytes]
) -> None:
    existing(store, **options)[:1] = np.arange(45000, dtype="float32").reshape(1, 300, 150)
    names = {"zarr.json", ".zarray", ".zattrs", ".zgroup"}
    chunks = [path for path in store.path.rglob("*") if path.is_file() and path.name not in names]
    for path in chunks:
        path.write_bytes(damage(path.read_bytes()))
    box = Box((0, 0, 0), (1, 100, 100))
    with pytest.raises(DamagedBlock, match=r"d\.zarr/g/img.*\(0, 0, 0\) to \(1, 100, 100\)"):
        opened(store, entry()).read(box)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, os.strerror(errno.EIO)),
        MemoryError("no room"),
        RuntimeError("can't start new thread"),
    ],
    ids=repr,
)
def test_a_disk_or_memory_that_fails_while_reading_is_no_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    existing(store)[:] = 1
    array = opened(store, entry())

    def fails(*_args: Any, **_options: Any) -> Any:
        raise error

    monkeypatch.setattr(LocalStore, "get", fails)
    with pytest.raises(type(error)):
        array.read(Box((0, 0, 0), (1, 100, 100)))


# -- what does not fit --------------------------------------------------------------------------

MISMATCHES: dict[str, tuple[dict[str, Any], str, str]] = {
    "axes": ({"axes": "SYX"}, "'SYX'", "'CYX'"),
    "number of axes": ({"axes": "YX", "shape": (300, 150)}, "'YX'", "'CYX'"),
    "shape": ({"shape": (2, 300, 151)}, "[2, 300, 151]", "[2, 300, 150]"),
    "dtype": ({"dtype": "float64"}, "'float64'", "'float32'"),
    "chunks": ({"chunks": (1, 100, 50)}, "[1, 100, 50]", "[1, 50, 50]"),
    "shards": ({"shards": (2, 100, 100)}, "[2, 100, 100]", "[1, 100, 100]"),
}


@pytest.mark.parametrize(("said", "given", "held"), MISMATCHES.values(), ids=MISMATCHES)
def test_a_mismatch_names_what_was_said_and_what_is_stored(
    store: Store, said: dict[str, Any], given: str, held: str
) -> None:
    existing(store, chunks=(1, 50, 50), shards=(1, 100, 100))
    array = opened(store, entry())
    with pytest.raises(ArrayMismatch) as raised:
        array.check(entry(**said))
    assert re.search(f"{KEY}/g/img: .*{re.escape(given)} .*{re.escape(held)}", str(raised.value))


def test_shards_of_an_array_without_are_a_mismatch(store: Store) -> None:
    existing(store)
    array = opened(store, entry())
    with pytest.raises(ArrayMismatch, match=r"shards \[1, 100, 100\] is not the stored None"):
        array.check(entry(shards=(1, 100, 100)))


UNSAID: dict[str, dict[str, Any]] = {
    "nothing": {},
    "automatic shards": {"shards": "auto"},
    "another fill value": {"fill_value": 7},
    "other codecs": {"codecs": ({"name": "gzip"},)},
    "other attributes": {"attributes": {"a": 1}},
    "all that is stored": {
        "dtype": "float32",
        "chunks": (1, 50, 50),
        "shards": (1, 100, 100),
    },
}


@pytest.mark.parametrize("said", UNSAID.values(), ids=UNSAID)
def test_what_is_not_said_or_used_at_creation_only_is_no_mismatch(
    store: Store, said: dict[str, Any]
) -> None:
    existing(store, chunks=(1, 50, 50), shards=(1, 100, 100))
    opened(store, entry(**said)).check(entry(**said))


@pytest.mark.parametrize("version", [2, 3], ids=["format 2", "format 3"])
def test_a_group_in_an_arrays_place_is_refused(store: Store, version: Any) -> None:
    zarr.create_group(LocalStore(store.path), path="g/img", zarr_format=version)
    with pytest.raises(ArrayMismatch, match="an array is wanted, a group is stored"):
        opened(store, entry())


@pytest.mark.parametrize("place", ["", "a", "a/b", "a/b/d"])
def test_an_array_in_a_groups_place_is_refused(store: Store, place: str) -> None:
    zarr.create_array(LocalStore(store.path), name=place or None, shape=(4,), dtype="uint8")
    with pytest.raises(ArrayMismatch, match=f"a group is wanted at {place!r}, an array is stored"):
        opened(store, entry(array="a/b/d/img"))


def test_a_group_of_format_2_takes_no_new_array(store: Store) -> None:
    zarr.create_group(store.path, zarr_format=2)
    with pytest.raises(ArrayMismatch, match="created in Zarr format 3, the group '' is stored in"):
        opened(store, entry())


def test_a_folder_with_files_of_others_is_refused(store: Store) -> None:
    (store.path / "g/img").mkdir(parents=True)
    (store.path / "g/img/notes.txt").write_text("mine")
    with pytest.raises(ArrayMismatch, match="the folder is not empty, but has no Zarr metadata"):
        opened(store, entry())


def test_an_empty_folder_becomes_the_array(store: Store) -> None:
    (store.path / "g/img").mkdir(parents=True)
    assert opened(store, entry()).layout.shape == (2, 300, 150)


def test_empty_folders_that_a_fenced_writer_left_are_no_array(store: Store) -> None:
    (store.path / "g/img/c/0/7").mkdir(parents=True)
    assert opened(store, entry()).layout.shape == (2, 300, 150)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"zarr_format": 4}',
        b"\xff\xfe",
        b'{"zarr_format": 3, "node_type": "table"}',
    ],
)
def test_metadata_that_cannot_be_read_is_refused(store: Store, content: bytes) -> None:
    (store.path / "g/img").mkdir(parents=True)
    (store.path / "g/img/zarr.json").write_bytes(content)
    with pytest.raises(ArrayMismatch, match=r"d\.zarr/g/img: its metadata cannot be read"):
        opened(store, entry())


def test_a_folder_in_the_place_of_metadata_is_refused(store: Store) -> None:
    (store.path / "g/img/zarr.json").mkdir(parents=True)
    with pytest.raises(ArrayMismatch, match=r"d\.zarr/g/img: its metadata cannot be read"):
        opened(store, entry())


def test_an_array_without_room_for_a_tile_is_refused(store: Store) -> None:
    existing(store, shape=(2, 0, 150))
    with pytest.raises(ArrayMismatch, match=r"no room for a tile in shape \[2, 0, 150\]"):
        opened(store, entry())


@pytest.mark.parametrize("dtype", ["complex64", "U8", "datetime64[s]"])
def test_a_dtype_that_no_tile_has_is_refused(store: Store, dtype: str) -> None:
    fill: Any = {"complex64": 0, "U8": "", "datetime64[s]": 0}[dtype]
    existing(
        store,
        dtype=dtype,
        fill_value=fill,
        zarr_format=2,
        dimension_names=None,
    )
    with pytest.raises(ArrayMismatch, match="is not one that tiles can have"):
        opened(store, entry())


@pytest.mark.parametrize("said", [{}, {"shards": (2, 256, 256)}], ids=["chunks", "shards"])
def test_a_block_beyond_the_memory_is_refused_before_it_is_created(
    store: Store, said: dict[str, Any]
) -> None:
    with pytest.raises(TooLarge, match="over the 1000 that fit the memory budget"):
        open_array(store, entry(**said), write_empty_chunks=True, max_block_bytes=1000)
    assert not store.path.exists()


def test_a_stored_block_beyond_the_memory_is_refused(store: Store) -> None:
    existing(store, chunks=(1, 100, 100), shards=(2, 300, 200))
    with pytest.raises(TooLarge, match=r"a shard of \[2, 300, 200\] has 480000.* 2792728$"):
        open_array(store, entry(), write_empty_chunks=True, max_block_bytes=479_999)


def test_a_block_that_just_fits_the_memory_is_taken(store: Store) -> None:
    existing(store, chunks=(1, 100, 100), shards=(2, 300, 200))
    open_array(store, entry(), write_empty_chunks=True, max_block_bytes=480_000)


@pytest.mark.parametrize(
    "refused",
    [{"array": "g"}, {"array": "g/img/below"}, {"shards": (1, 7, 7), "array": "g/new"}],
    ids=["group in the way", "array in the way", "shards that fit no chunks"],
)
def test_what_is_refused_leaves_the_store_as_it_was(store: Store, refused: dict[str, Any]) -> None:
    opened(store, entry())
    before = stamps(store.path)
    with pytest.raises(ParkError):
        opened(store, entry(**refused))
    assert stamps(store.path) == before


# -- made with the first block ------------------------------------------------------------------


def test_what_does_not_exist_is_made_late(store: Store) -> None:
    array = promised(store, entry(fill_value=7))
    np.testing.assert_array_equal(array.read(Box((0, 0, 0), (1, 9, 9))), np.full((1, 9, 9), 7))
    assert not store.path.parent.exists()
    assert array.metadata.stands()
    array.metadata.make()
    array.metadata.require()
    before = stamps(store.path)
    array.metadata.make()
    assert stamps(store.path) == before
    assert opened(store, entry()).ledger_id == array.ledger_id


def test_what_is_being_made_is_no_other(root: Path) -> None:
    visible, seen = threading.Event(), threading.Event()

    def step(name: str) -> None:
        if name == "commit.sync_folder" and not visible.is_set():
            visible.set()
            seen.wait(0.5)

    store = open_store(root, KEY, file_mode=0o644, folder_mode=0o755, step=step)
    array = promised(store, entry())
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(array.metadata.make)
        assert visible.wait(60.0)
        stood = array.metadata.stands()
        seen.set()
        making.result()
    assert stood


def test_what_somebody_made_meanwhile_is_another(store: Store) -> None:
    array = promised(store, entry())
    existing(store)
    with pytest.raises(FileNotFoundError, match="removed or replaced"):
        array.metadata.make()


def test_groups_that_stand_by_then_are_left_alone(store: Store) -> None:
    first, second = promised(store, entry(array="g/a")), promised(store, entry(array="g/h/b"))
    first.metadata.make()
    before = {path: stamp for path, stamp in stamps(store.path).items() if path.is_file()}
    second.metadata.make()
    after = {path: stamp for path, stamp in stamps(store.path).items() if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert after.keys() - before.keys() == {
        store.path / "g/h/zarr.json",
        store.path / "g/h/b/zarr.json",
    }


@pytest.mark.parametrize(("first", "second"), [("g", "g/img"), ("g/img", "g")])
def test_of_two_arrays_in_each_others_way_one_is_made(
    store: Store, first: str, second: str
) -> None:
    made, other = promised(store, entry(array=first)), promised(store, entry(array=second))
    made.metadata.make()
    before = stamps(store.path)
    with pytest.raises((ArrayMismatch, FileNotFoundError)):
        other.metadata.make()
    assert stamps(store.path) == before


# -- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["plate7", KEY])
def test_a_store_behind_a_link_is_refused(root: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "outside").mkdir()
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePath, match=f"{place} is a symbolic link"):
        open_store(root, KEY, file_mode=0o644, folder_mode=0o755)


@pytest.mark.parametrize("place", ["g", "g/img"])
def test_an_array_behind_a_link_is_refused(store: Store, tmp_path: Path, place: str) -> None:
    by_zarr(tmp_path / "outside", "g/img", chunks=(1, 100, 100))
    (store.path / place).parent.mkdir(parents=True)
    (store.path / place).symlink_to(tmp_path / "outside" / place)
    with pytest.raises(UnsafePath, match=f"{place} is a symbolic link"):
        opened(store, entry())


@pytest.mark.parametrize("place", ["zarr.json", "g/zarr.json", "g/img/zarr.json"])
def test_metadata_behind_a_link_is_refused(store: Store, tmp_path: Path, place: str) -> None:
    opened(store, entry())
    (store.path / place).rename(tmp_path / "outside.json")
    (store.path / place).symlink_to(tmp_path / "outside.json")
    with pytest.raises(UnsafePath, match=f"{place} is a symbolic link"):
        opened(store, entry(array="g/img" if "img" in place else "g/other"))


@pytest.mark.parametrize("place", ["g/img/c", "g/img/c/0", "g/img/c/0/0/0"])
def test_stored_voxels_behind_a_link_are_not_read(store: Store, tmp_path: Path, place: str) -> None:
    existing(store)[:] = 3
    (store.path / place).rename(tmp_path / "outside")
    (store.path / place).symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePath, match="is a symbolic link"):
        opened(store, entry()).read(Box((0, 0, 0), (1, 100, 100)))


def test_a_store_that_does_not_exist_is_not_made_by_opening_it(root: Path) -> None:
    open_store(root, KEY, file_mode=0o644, folder_mode=0o755)
    assert [path.name for path in root.iterdir()] == [".tiles"]


def test_opening_a_store_takes_it(root: Path, store: Store) -> None:
    other = open_store(root, KEY, file_mode=0o644, folder_mode=0o755)
    with pytest.raises(Fenced):
        opened(store, entry())
    assert not files(store.path)
    opened(other, entry())


def test_arrays_of_one_store_share_its_handle(store: Store) -> None:
    arrays = [opened(store, entry(array=path)) for path in ("a", "g/a", "g/b")]
    assert all(one.store is other.store for one, other in itertools.pairwise(arrays))
