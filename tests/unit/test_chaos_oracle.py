"""The fault suite's oracle sees each kind of damage, and nothing where there is none."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from chaos import product
from chaos.images import image
from chaos.oracle import Found, changes, examine, snapshot

IMAGE = image(1)
PLACES = IMAGE.places()[:-3]
LAST, UNSENT = PLACES[-1], IMAGE.places()[-1]
STATE = f".tiles/{IMAGE.store}"


@pytest.fixture(autouse=True)
def _ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    _say_missing(monkeypatch, IMAGE.places()[-3:])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one image as it should be, and a file of its ledger."""
    said = dict(IMAGE.extra)
    group = zarr.open_group(tmp_path / IMAGE.store, mode="w")
    array = group.create_array(
        IMAGE.path,
        shape=(1, *IMAGE.size),
        chunks=tuple(said["chunks"]),
        shards=tuple(said["shards"]),
        dtype="uint32",
    )
    image = np.zeros((1, *IMAGE.size), "uint32")
    for place in PLACES:
        region = (slice(None), *IMAGE.box(place))
        image[region] = IMAGE.truth[region]
    array[:] = image
    for name in (".ledger.json", ".blocks-0.json"):
        put(tmp_path / STATE / "ledger" / IMAGE.path / name)
    return tmp_path


def put(path: Path) -> None:
    """Put a file somewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")


def figures(root: Path) -> tuple[int, int, int, int]:
    """Return lost, corrupt, foreign and leftovers."""
    found: Found = examine(root, {IMAGE: PLACES})
    return found.lost, found.corrupt, found.foreign, found.leftovers


def change(root: Path, place: tuple[int, int], value: int) -> int:
    """Write a value over a tile's place; return how many voxels that are."""
    array = zarr.open_array(root / IMAGE.store, path=IMAGE.path, mode="r+")
    stored: npt.NDArray[np.uint32] = np.array(array[:])
    region = (slice(None), *IMAGE.box(place))
    stored[region] = value
    array[:] = stored
    return stored[region].size


def test_what_is_as_it_should_be_is_clean(root: Path) -> None:
    assert figures(root) == (0, 0, 0, 0)


def test_a_tile_that_is_not_there_is_lost(root: Path) -> None:
    change(root, LAST, 0)
    assert figures(root) == (1, 0, 0, 0)


def test_an_array_that_is_not_there_has_lost_all_its_tiles(root: Path) -> None:
    (root / IMAGE.store / IMAGE.path / "zarr.json").unlink()
    assert figures(root)[0] == len(PLACES)


def test_voxels_of_another_value_are_corrupt(root: Path) -> None:
    assert figures(root) == (0, 0, 0, 0)
    count = change(root, LAST, 7)
    assert figures(root) == (0, count, 0, 0)


def test_voxels_where_nobody_sent_a_tile_are_foreign(root: Path) -> None:
    count = change(root, UNSENT, 7)
    assert figures(root) == (0, 0, count, 0)


@pytest.mark.parametrize(
    "name",
    [
        "other.zarr/zarr.json",
        f"{IMAGE.store}/g1/i9/c/0/0/0",
        f"{IMAGE.store}/g1/i9/zarr.json",
        f"{IMAGE.store}/{IMAGE.path}/part",
        f"{IMAGE.store}/{IMAGE.path}/c/part",
        f"{IMAGE.store}/{IMAGE.path}/c/0/0/0.part",
        f"{IMAGE.store}/{IMAGE.path}/c/0/0/00",
        f"{IMAGE.store}/{IMAGE.path}/c/0/0/2",
        f"{IMAGE.store}/{IMAGE.path}/c/0/0/1.0",
        f"{IMAGE.store}/{IMAGE.path}/c/0/zarr.json",
    ],
)
def test_files_that_nobody_asked_for_are_foreign(root: Path, name: str) -> None:
    put(root / name)
    assert figures(root) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        (f"{STATE}/epochs/1-ab/0", 2),
        (f"{STATE}/fenced/1-ab/0", 2),
        (".tiles/.tiles/ab/written", 2),
        (".tiles/lone/ab.json", 0),
        (".tiles/lone/ab.part", 1),
        (f"{STATE}/ledger/{IMAGE.path}/.ledger.json.damaged-20261130T101500.000000Z", 1),
        (f"{STATE}/ledger/{IMAGE.path}/.blocks-0.json.damaged-20261130T101500.000000Z", 1),
        (f"{STATE}/ledger/{IMAGE.path}/.blocks-0.json.part", 1),
        (f"{STATE}/ledger/{IMAGE.path}/.blocks-1.json", 0),
    ],
)
def test_what_a_tenure_left_behind_is_left_over(root: Path, name: str, count: int) -> None:
    put(root / name)
    assert figures(root) == (0, 0, 0, count)


def test_what_is_noted_of_messages_that_kill_stays(root: Path) -> None:
    put(root / ".tiles/lone/ab.json")
    assert figures(root) == (0, 0, 0, 0)


def test_what_lay_there_before_is_nobodys(root: Path) -> None:
    put(root / "existing.zarr/c/0")
    found = examine(root, {IMAGE: PLACES}, {"existing.zarr"})
    assert found.foreign == 0


def test_a_ledger_that_lacks_a_tile_has_lost_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _with_ledger(root, monkeypatch, [LAST, *IMAGE.places()[-3:]]) == (1, 0, 0, 0)


def test_a_ledger_that_knows_too_much_is_foreign(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsent = IMAGE.truth[(slice(None), *IMAGE.box(UNSENT))].size
    assert _with_ledger(root, monkeypatch, IMAGE.places()[-3:-1]) == (0, 0, unsent, 0)


def _change(folder: Path) -> None:
    (folder / "a").write_text("y")


def _add(folder: Path) -> None:
    put(folder / "deep/b")


def _remove(folder: Path) -> None:
    (folder / "a").unlink()


def _add_metadata(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep/zarr.json").write_text("{}")


def _change_metadata(folder: Path) -> None:
    (folder / "zarr.json").write_text('{"shape": [2], "attributes": {}}')


def _lead_elsewhere(folder: Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("zarr.json")


def _give_ledger(folder: Path) -> None:
    said = {"attributes": {product.LEDGER_ATTRIBUTE: "ab"}, "shape": [1]}
    (folder / "zarr.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("act", "seen"),
    [
        (_change, ["a was changed or removed"]),
        (_remove, ["a was changed or removed"]),
        (_add, ["deep/b was made"]),
        (_add_metadata, ["deep/zarr.json was made"]),
        (_change_metadata, ["zarr.json was changed or removed"]),
        (_lead_elsewhere, ["link was changed or removed"]),
        (_give_ledger, []),
    ],
)
def test_a_snapshot_sees_what_is_made_changed_or_removed(
    tmp_path: Path, act: Callable[[Path], None], seen: list[str]
) -> None:
    put(tmp_path / "a")
    (tmp_path / "zarr.json").write_text('{"shape": [1], "attributes": {}}')
    (tmp_path / "link").symlink_to("a")
    before = snapshot(tmp_path)
    act(tmp_path)
    found = changes(before, snapshot(tmp_path))
    assert [line.removeprefix(f"{tmp_path}/") for line in found] == seen


def _with_ledger(
    root: Path, monkeypatch: pytest.MonkeyPatch, missing: list[tuple[int, int]]
) -> tuple[int, int, int, int]:
    _say_missing(monkeypatch, missing)
    return figures(root)


def _say_missing(monkeypatch: pytest.MonkeyPatch, missing: list[tuple[int, int]]) -> None:
    """Have the ledger call some places missing."""
    regions = [(slice(None), *IMAGE.box(place)) for place in missing]
    monkeypatch.setattr(product, "missing", lambda *_: iter(regions))
