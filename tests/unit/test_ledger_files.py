"""Ledgers on disk: found, read, and never believed where they are damaged or another array's."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from consumer.blocks import ArrayKey
from consumer.commit import Commit
from consumer.coverage import Box
from consumer.errors import UnsafePath
from consumer.ledger import Ledger
from consumer.ledger_files import find, load, read
from consumer.ledger_format import Header

ARRAY = ArrayKey("plate7/d.zarr", "g1/img")
NOW_MS = 1795338000123
FRESH = Header("an-id", "YX", (8000, 80), (10, 10), (10, 10), "a-new-ledger")
WHOLE = [Box((0, 0), (10, 10))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An output root with a ledger of two segments."""
    commit = taken(tmp_path)
    ledger, _ = load(tmp_path, ARRAY, FRESH, NOW_MS)
    for block in ((0, 0), (0, 1), (799, 7)):
        ledger.fill(block, WHOLE)
    ledger.fill((3, 3), [Box((0, 0), (5, 5))])
    ledger.count(4, NOW_MS)
    commit.commit({}, ledger.dirty())
    return tmp_path


def taken(root: Path, store: str = ARRAY.store) -> Commit:
    """Take a store."""
    return Commit.take(root, store, file_mode=0o644, folder_mode=0o755)


def folder(root: Path) -> Path:
    """Return the ledger's folder."""
    return root / ".tiles" / ARRAY.store / "ledger" / ARRAY.path


def files(root: Path) -> list[str]:
    """Return the names of the ledger's files."""
    return sorted(path.name for path in folder(root).iterdir())


def known(ledger: Ledger) -> tuple[int, int]:
    """Return what shows how much is filled."""
    return ledger.missing_blocks, round(ledger.percent * 6400)


ALL = (6397, 325)


def test_what_was_saved_is_loaded(root: Path) -> None:
    ledger, damages = load(root, ARRAY, replace(FRESH, ledger="a-newer-one"), NOW_MS)
    assert known(ledger) == ALL
    assert ledger.header == replace(FRESH, tiles=4, written_ms=NOW_MS)
    assert not damages
    assert not ledger.dirty()


def test_where_there_is_none_it_is_empty_and_to_be_written(tmp_path: Path) -> None:
    ledger, damages = load(tmp_path, ARRAY, FRESH, NOW_MS)
    assert ledger.header == FRESH
    assert ledger.missing_blocks == 6400
    assert not damages
    assert list(ledger.dirty()) == ["g1/img/.ledger.json"]


OTHERS = {
    "id": replace(FRESH, id="another"),
    "no id": replace(FRESH, id=""),
    "shape": replace(FRESH, shape=(8000, 81)),
    "block": replace(FRESH, block=(20, 20)),
    "files in the block": replace(FRESH, file=(5, 5)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_the_ledger_of_an_array_that_had_the_name_before_is_not_believed(
    root: Path, other: Header
) -> None:
    ledger, damages = load(root, ARRAY, other, NOW_MS)
    assert ledger.missing_blocks == ledger.blocks
    assert ledger.header == other
    assert not damages


def test_the_files_of_an_array_that_had_the_name_before_go_with_the_first_round(root: Path) -> None:
    ledger, _ = load(root, ARRAY, OTHERS["id"], NOW_MS)
    ledger.fill((799, 7), WHOLE)
    taken(root).commit({}, ledger.dirty())
    assert files(root) == [".blocks-00001.json", ".ledger.json"]
    assert load(root, ARRAY, OTHERS["id"], NOW_MS)[0].missing_blocks == 6399


def test_axes_that_a_message_says_otherwise_are_the_same_array(root: Path) -> None:
    ledger, _ = load(root, ARRAY, replace(FRESH, axes="CZ"), NOW_MS)
    assert known(ledger) == ALL


# -- damage -------------------------------------------------------------------------------------

STAMP = "20261122T.*Z"
HEADER, SEGMENT = ".ledger.json", ".blocks-00001.json"


def damage(file: Path) -> bytes:
    """Change a byte; return what is there now."""
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(content)
    return bytes(content)


def test_a_damaged_segment_counts_as_empty_and_is_reported(root: Path) -> None:
    damage(folder(root) / SEGMENT)
    ledger, damages = load(root, ARRAY, FRESH, NOW_MS)
    assert known(ledger) == (6398, 225)
    [said] = damages
    assert re.fullmatch(r"plate7/d\.zarr/g1/img: \.blocks-00001\.json is damaged: .*", said)


def test_a_damaged_header_makes_the_ledger_empty_and_is_reported(root: Path) -> None:
    damage(folder(root) / HEADER)
    ledger, damages = load(root, ARRAY, FRESH, NOW_MS)
    assert known(ledger) == (6400, 0)
    assert ledger.header == FRESH
    assert ".ledger.json is damaged" in damages[0]


@pytest.mark.parametrize("name", [HEADER, SEGMENT])
def test_what_is_damaged_is_left_until_the_first_round(root: Path, name: str) -> None:
    content = damage(folder(root) / name)
    load(root, ARRAY, FRESH, NOW_MS)
    assert (folder(root) / name).read_bytes() == content


@pytest.mark.parametrize("name", [HEADER, SEGMENT])
@pytest.mark.parametrize("block", [(0, 5), (799, 7)], ids=["other segment", "same segment"])
def test_what_is_damaged_is_set_aside_by_the_first_round(
    root: Path, name: str, block: tuple[int, int]
) -> None:
    content = damage(folder(root) / name)
    ledger, _ = load(root, ARRAY, FRESH, NOW_MS)
    ledger.fill(block, WHOLE)
    taken(root).commit({}, ledger.dirty())
    [aside] = [file for file in files(root) if re.fullmatch(f"{name}.damaged-{STAMP}", file)]
    assert (folder(root) / aside).read_bytes() == content
    again, damages = load(root, ARRAY, FRESH, NOW_MS)
    assert not damages
    assert again.is_whole(block)
    assert known(again) == known(ledger)


def test_two_damages_are_both_set_aside(root: Path) -> None:
    for _ in range(2):
        damage(folder(root) / HEADER)
        ledger, _ = load(root, ARRAY, FRESH, NOW_MS + len(files(root)))
        taken(root).commit({}, ledger.dirty())
    assert sum("damaged" in name for name in files(root)) == 2


@pytest.mark.parametrize("name", [HEADER, SEGMENT])
def test_a_link_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    (folder(root) / name).rename(tmp_path / "outside")
    (folder(root) / name).symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePath, match=f"{name} is a symbolic link"):
        load(root, ARRAY, FRESH, NOW_MS)


def test_a_disk_that_fails_is_no_damage(root: Path) -> None:
    (folder(root) / HEADER).unlink()
    (folder(root) / HEADER).mkdir()
    with pytest.raises(IsADirectoryError):
        load(root, ARRAY, FRESH, NOW_MS)


# -- reading without the store ------------------------------------------------------------------


def test_a_reader_sees_what_was_saved(root: Path) -> None:
    ledger, damages = read(root, ARRAY)
    assert ledger is not None
    assert known(ledger) == ALL
    assert not damages


@pytest.mark.parametrize("array", [ArrayKey("plate7/d.zarr", "g1"), ArrayKey("e.zarr", "img")])
def test_a_reader_finds_nothing_where_there_is_none(root: Path, array: ArrayKey) -> None:
    assert read(root, array) == (None, [])


def test_a_reader_changes_nothing(root: Path) -> None:
    damage(folder(root) / SEGMENT)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    read(root, ARRAY)
    list(find(root))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_reader_of_a_ledger_that_is_being_restarted_sees_it_empty(root: Path) -> None:
    ledger, _ = load(root, ARRAY, FRESH, NOW_MS)
    ledger.restart("another")
    [header] = [parts for parts in ledger.dirty().values() if parts]
    (folder(root) / HEADER).write_bytes(header[0])
    seen, damages = read(root, ARRAY)
    assert seen is not None
    assert seen.missing_blocks == 6400
    assert not damages


def test_a_segment_that_is_removed_while_it_is_read_counts_as_empty(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*look(path), ".blocks-00009.json"])
    ledger, damages = read(root, ARRAY)
    assert ledger is not None
    assert known(ledger) == ALL
    assert not damages


def test_every_ledger_is_found(root: Path) -> None:
    arrays = {
        ARRAY,
        ArrayKey("e.zarr", "img"),
        ArrayKey("e.zarr", "ledger"),
        ArrayKey("e.zarr", "img/ledger/x"),
        ArrayKey("epochs/e.zarr", "a"),
        ArrayKey("ledger/f.zarr", "a"),
    }
    for array in arrays:
        commit = taken(root, array.store)
        commit.commit({}, Ledger(array.path, FRESH).dirty())
    assert sorted(find(root)) == sorted(arrays)


@pytest.mark.parametrize(
    "path",
    [".ledger.json", "a.zarr/.ledger.json", "a.zarr/ledger/.ledger.json", "a/b/.ledger.json"],
)
def test_what_lies_elsewhere_is_no_ledger(tmp_path: Path, path: str) -> None:
    file = tmp_path / ".tiles" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"{}")
    assert list(find(tmp_path)) == []


def test_a_root_without_ledgers_has_none(tmp_path: Path) -> None:
    assert list(find(tmp_path)) == []
