"""Files appear whole or not at all, survive a crash once committed, and stay below the root."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from consumer.commit import Commit
from consumer.errors import Fenced, UnsafePath
from consumer.files import refuse_links, write_file
from consumer.trials import probe

STORE = "plate7/d.zarr"
OBJECTS = {
    "zarr.json": b"{}",
    "g/img/zarr.json": b"{} ",
    "g/img/c/0/0": b"first chunk",
    "g/img/c/0/1": b"second chunk",
    "g/img/c/1/0": b"third chunk",
}


class Event(NamedTuple):
    """A call of a function of `os`: its name, the file it concerns, and a rename's target."""

    name: str
    path: Path
    target: Path = Path()


def parts(objects: Mapping[str, bytes]) -> dict[str, list[bytes]]:
    """Return objects as the commit takes them, in one part each."""
    return {key: [content] for key, content in objects.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The output root."""
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def commit_of(root: Path, *, file_mode: int = 0o644, folder_mode: int = 0o755) -> Commit:
    """Take the store."""
    return Commit.take(root, STORE, file_mode=file_mode, folder_mode=folder_mode)


def stored(root: Path) -> dict[str, bytes]:
    """Return what readers of the store see, by key."""
    store = root / STORE
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def temporary_files(root: Path) -> list[Path]:
    """Return every file in the state folder, and any elsewhere that is none of the objects."""
    wanted = {root / STORE / key for key in OBJECTS}
    return [path for path in root.rglob("*") if path.is_file() and path not in wanted]


# -- what is seen -------------------------------------------------------------------------------


def test_every_object_is_stored_under_its_key(root: Path) -> None:
    commit_of(root).commit(parts(OBJECTS))
    assert stored(root) == OBJECTS


def test_the_bytes_written_are_returned(root: Path) -> None:
    assert commit_of(root).commit(parts(OBJECTS)) == sum(map(len, OBJECTS.values()))


def test_what_was_stored_is_replaced(root: Path) -> None:
    commit = commit_of(root)
    commit.commit(parts(OBJECTS))
    commit.commit({"zarr.json": [b"longer than before"]})
    assert stored(root) == OBJECTS | {"zarr.json": b"longer than before"}


def test_a_reader_of_the_replaced_file_still_reads_the_old_one_whole(root: Path) -> None:
    commit = commit_of(root)
    commit.commit(parts(OBJECTS))
    with (root / STORE / "g/img/c/0/0").open("rb") as reader:
        commit.commit({"g/img/c/0/0": [b"new"]})
        assert reader.read() == b"first chunk"


def test_no_temporary_file_is_left(root: Path) -> None:
    commit_of(root).commit(parts(OBJECTS))
    assert temporary_files(root) == []


def test_a_commit_of_nothing_changes_nothing(root: Path) -> None:
    assert commit_of(root).commit({}) == 0
    assert not (root / STORE).exists()


@pytest.mark.parametrize("size", [1, 4096, 1 << 20, (1 << 20) + 1])
def test_short_writes_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    write, most = os.write, max(1, size // 7)
    monkeypatch.setattr(os, "write", lambda fd, content: write(fd, content[:most]))
    monkeypatch.setattr(os, "writev", lambda fd, parts: write(fd, b"".join(parts)[:most]))
    content = os.urandom(size)
    places = [0, size // 9, size // 8, size // 2, size]
    write_file(tmp_path / "file", [content[a:b] for a, b in pairwise(places)], 0o644)
    assert (tmp_path / "file").read_bytes() == content


def test_a_file_may_have_more_parts_than_one_call_takes(tmp_path: Path) -> None:
    content = os.urandom(5000)
    write_file(tmp_path / "file", [content[i : i + 2] for i in range(0, 5000, 2)], 0o644)
    assert (tmp_path / "file").read_bytes() == content


def test_a_new_file_never_writes_into_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"others'")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "file", [b"ours"], 0o644)
    assert (tmp_path / "file").read_bytes() == b"others'"


# -- the order that makes it durable ------------------------------------------------------------


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Every write, fsync, rename and new folder, in order."""
    found: list[Event] = []

    def spy(name: str, paths: Callable[..., tuple[Path, ...]]) -> None:
        real = getattr(os, name)

        def spied(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            found.append(Event(name, *paths(*args)))
            return result

        monkeypatch.setattr(os, name, spied)

    def of_descriptor(descriptor: int, *_: Any) -> tuple[Path]:
        return (Path(f"/proc/self/fd/{descriptor}").readlink(),)

    spy("writev", of_descriptor)
    spy("fsync", of_descriptor)
    spy("rename", lambda source, target: (Path(source), Path(target)))
    spy("mkdir", lambda path, *_: (Path(path),))
    return found


def of_kind(events: list[Event], kind: str) -> list[Event]:
    """Return the events of one kind."""
    return [event for event in events if event.name == kind]


def synced(events: list[Event], path: Path) -> list[int]:
    """Return when a path was synced."""
    return [i for i, event in enumerate(events) if event[:2] == ("fsync", path)]


def renames(events: list[Event]) -> Iterator[tuple[int, Path, Path]]:
    """Yield when, from where and to where files were renamed."""
    for i, event in enumerate(events):
        if event.name == "rename":
            yield i, event.path, event.target


def test_every_object_is_renamed_into_place(root: Path, events: list[Event]) -> None:
    commit_of(root).commit(parts(OBJECTS))
    assert {target for _, _, target in renames(events)} == {root / STORE / key for key in OBJECTS}


def test_every_file_is_synced_after_its_last_write_and_before_its_rename(
    root: Path, events: list[Event]
) -> None:
    commit_of(root).commit(parts(OBJECTS))
    for renamed, temporary, _ in renames(events):
        written = [i for i, event in enumerate(events) if event[:2] == ("write", temporary)]
        [at] = synced(events, temporary)
        assert max(written, default=-1) < at < renamed


def test_all_files_are_synced_before_the_first_is_renamed(root: Path, events: list[Event]) -> None:
    commit_of(root).commit(parts(OBJECTS))
    first = min(i for i, _, _ in renames(events))
    assert all(synced(events, temporary)[0] < first for _, temporary, _ in renames(events))


def test_the_folder_of_each_object_is_synced_after_its_last_rename(
    root: Path, events: list[Event]
) -> None:
    commit_of(root).commit(parts(OBJECTS))
    for renamed, _, target in renames(events):
        assert synced(events, target.parent)[-1] > renamed


def test_each_folder_is_synced_once_for_all_its_objects(root: Path, events: list[Event]) -> None:
    commit = commit_of(root)
    commit.commit(parts(OBJECTS))
    events.clear()
    commit.commit(parts(OBJECTS))
    folders = {(root / STORE / key).parent for key in OBJECTS}
    files = {source for _, source, _ in renames(events)}
    assert sorted(event.path for event in of_kind(events, "fsync")) == sorted(folders | files)


def test_every_folder_made_is_synced_in_its_parent_up_to_the_root(
    root: Path, events: list[Event]
) -> None:
    commit_of(root).commit(parts(OBJECTS))
    made = [(i, event.path) for i, event in enumerate(events) if event.name == "mkdir"]
    made = [(i, folder) for i, folder in made if folder.is_relative_to(root / "plate7")]
    assert root / "plate7" in [folder for _, folder in made]
    for at, folder in made:
        assert any(i > at for i in synced(events, folder.parent)), folder


def test_folders_that_stood_are_synced_too_since_nobody_may_have_done_so(
    root: Path, events: list[Event]
) -> None:
    (root / STORE / "g/img/c/0").mkdir(parents=True)
    commit_of(root).commit({"g/img/c/0/0": [b"x"]})
    upwards = [root, root / "plate7", *(root / STORE / part for part in ("", "g", "g/img"))]
    assert all(synced(events, folder) for folder in upwards)


def test_temporary_files_are_below_the_stores_own_state(root: Path, events: list[Event]) -> None:
    commit_of(root).commit(parts(OBJECTS))
    assert all(source.is_relative_to(root / ".tiles" / STORE) for _, source, _ in renames(events))


# -- what fails ---------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, name: str, call: int, number: int = errno.EIO) -> None:
    """Make one call of a function of `os` fail."""
    real, calls = getattr(os, name), iter(range(1 << 20))

    def fails(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise OSError(number, os.strerror(number))
        return real(*args, **options)

    monkeypatch.setattr(os, name, fails)


Fault = tuple[str, int, int]
# Of a commit whose folders stand: five files are written, synced, renamed; then folders synced.
NOT_DURABLE: dict[str, Fault] = {
    "no space for the first file": ("writev", 0, errno.ENOSPC),
    "no space for the last file": ("writev", 4, errno.ENOSPC),
    "first file cannot be made": ("open", 0, errno.EIO),
    "last file cannot be made": ("open", 4, errno.EDQUOT),
    "first file cannot be synced": ("fsync", 0, errno.EIO),
    "last file cannot be synced": ("fsync", 4, errno.EIO),
}
NOT_IN_PLACE: dict[str, Fault] = {
    "first file cannot be renamed": ("rename", 0, errno.EIO),
    "last file cannot be renamed": ("rename", 4, errno.EIO),
    "first folder cannot be synced": ("fsync", 5, errno.EIO),
    "last folder cannot be synced": ("fsync", 8, errno.EIO),
}
FAULTS = NOT_DURABLE | NOT_IN_PLACE
NEW = dict.fromkeys(OBJECTS, b"new")


@pytest.fixture
def standing(root: Path) -> Commit:
    """A commit that has committed before, so that its folders stand."""
    commit = commit_of(root)
    commit.commit(parts(OBJECTS))
    return commit


@pytest.fixture(params=FAULTS.values(), ids=list(FAULTS))
def failed(standing: Commit, request: pytest.FixtureRequest) -> Commit:
    """A commit that could not commit `NEW`; the fault is gone now."""
    name, call, number = request.param
    with pytest.MonkeyPatch.context() as faulty:
        failing(faulty, name, call, number)
        with pytest.raises(OSError, match=os.strerror(number)):
            standing.commit(parts(NEW))
    return standing


@pytest.mark.usefixtures("failed")
def test_a_failure_leaves_no_temporary_file(root: Path) -> None:
    assert temporary_files(root) == []


@pytest.mark.usefixtures("failed")
@pytest.mark.parametrize("failed", NOT_DURABLE.values(), ids=NOT_DURABLE, indirect=True)
def test_nothing_is_replaced_where_not_all_files_are_durable(root: Path) -> None:
    assert stored(root) == OBJECTS


@pytest.mark.usefixtures("failed")
def test_a_failure_leaves_every_file_whole_be_it_old_or_new(root: Path) -> None:
    assert all(content in {NEW[key], OBJECTS[key]} for key, content in stored(root).items())


def test_a_commit_that_failed_succeeds_when_the_fault_is_gone(root: Path, failed: Commit) -> None:
    failed.commit(parts(NEW))
    assert stored(root) == NEW


def test_a_commit_that_failed_syncs_every_file_and_folder_anew(
    root: Path, failed: Commit, events: list[Event]
) -> None:
    failed.commit(parts(NEW))
    wanted = {source for _, source, _ in renames(events)}
    wanted |= {(root / STORE / key).parent for key in OBJECTS}
    assert {event.path for event in of_kind(events, "fsync")} == wanted


def test_a_folder_in_a_files_place_leaves_no_temporary_file(root: Path) -> None:
    (root / STORE / "g/img/c/0/1").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        commit_of(root).commit(parts(OBJECTS))
    assert temporary_files(root) == []


def test_a_file_in_a_folders_place_is_not_a_folder(root: Path) -> None:
    (root / STORE).mkdir(parents=True)
    (root / STORE / "g").write_bytes(b"notes")
    with pytest.raises(NotADirectoryError):
        commit_of(root).commit(parts(OBJECTS))
    assert (root / STORE / "g").read_bytes() == b"notes"


def test_a_new_folder_that_could_not_be_synced_is_synced_by_the_next_commit(
    root: Path, standing: Commit, events: list[Event]
) -> None:
    with pytest.MonkeyPatch.context() as faulty:
        failing(faulty, "fsync", 0)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            standing.commit({"new/zarr.json": [b"{}"]})
    events.clear()
    standing.commit({"new/zarr.json": [b"{}"]})
    assert synced(events, root / STORE)


# -- modes --------------------------------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=["umask 000", "umask 022", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """A umask, which must not matter."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o644, 0o600, 0o664, 0o640])
def test_files_have_the_configured_mode(root: Path, mode: int) -> None:
    commit_of(root, file_mode=mode).commit(parts(OBJECTS))
    modes = {(root / STORE / key).stat().st_mode & 0o7777 for key in OBJECTS}
    assert modes == {mode}


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", [0o755, 0o700, 0o775, 0o750])
def test_folders_have_the_configured_mode(root: Path, mode: int) -> None:
    commit_of(root, folder_mode=mode).commit(parts(OBJECTS))
    folders = [root / "plate7", root / STORE, *(root / STORE).rglob("*")]
    assert {path.stat().st_mode & 0o7777 for path in folders if path.is_dir()} == {mode}


def test_folders_that_stood_keep_their_mode(root: Path) -> None:
    (root / STORE / "g").mkdir(parents=True, mode=0o711)
    commit_of(root, folder_mode=0o755).commit(parts(OBJECTS))
    assert (root / STORE / "g").stat().st_mode & 0o7777 == 0o711


# -- links --------------------------------------------------------------------------------------

PLACES = {
    "state folder": ".tiles",
    "state of the store's folder": ".tiles/plate7",
    "folder of the store": "plate7",
    "store": STORE,
    "group": f"{STORE}/g",
    "array": f"{STORE}/g/img",
    "chunk folder": f"{STORE}/g/img/c",
    "folder in the chunk folder": f"{STORE}/g/img/c/0",
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder outside the root with something in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "0").write_bytes(b"others'")
    return folder


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_link_to_the_outside_is_refused(root: Path, outside: Path, place: str) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to(outside)
    with pytest.raises(UnsafePath, match=f"{place} is a symbolic link"):
        commit_of(root).commit(parts(OBJECTS))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_nothing_is_written_through_a_link(root: Path, outside: Path, place: str) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to(outside)
    with pytest.raises(UnsafePath):
        commit_of(root).commit(parts(OBJECTS))
    assert [path.read_bytes() for path in outside.rglob("*")] == [b"others'"]


def test_a_link_that_leads_back_below_the_root_is_refused_too(root: Path) -> None:
    (root / "other").mkdir()
    (root / "plate7").symlink_to(root / "other")
    with pytest.raises(UnsafePath):
        commit_of(root).commit(parts(OBJECTS))


def test_a_link_that_leads_nowhere_is_refused_too(root: Path) -> None:
    (root / "plate7").symlink_to(root / "missing")
    with pytest.raises(UnsafePath):
        commit_of(root).commit(parts(OBJECTS))


def test_a_link_in_a_files_place_is_replaced_and_not_followed(root: Path, outside: Path) -> None:
    (root / STORE).mkdir(parents=True)
    (root / STORE / "zarr.json").symlink_to(outside / "0")
    commit_of(root).commit({"zarr.json": [b"{}"]})
    assert (outside / "0").read_bytes() == b"others'"
    assert not (root / STORE / "zarr.json").is_symlink()


def test_the_root_itself_may_be_a_link(tmp_path: Path, root: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    commit_of(tmp_path / "link").commit(parts(OBJECTS))
    assert stored(root) == OBJECTS


def test_a_link_that_came_later_is_refused_once_folders_are_looked_at_again(
    root: Path, outside: Path
) -> None:
    commit = commit_of(root)
    commit.commit({"zarr.json": [b"{}"], "g/zarr.json": [b"{}"]})
    (root / STORE / "g" / "zarr.json").unlink()
    (root / STORE / "g").rmdir()
    (root / STORE / "g").symlink_to(outside)
    commit.forget_folders()
    with pytest.raises(UnsafePath):
        commit.commit({"g/zarr.json": [b"{}"]})


def test_refusing_links_names_the_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match="link is a symbolic link; links below the output root"):
        refuse_links([tmp_path, tmp_path / "link"])


# -- a store that was removed -------------------------------------------------------------------


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def test_a_removed_store_is_not_made_again_unasked(root: Path, standing: Commit) -> None:
    remove(root / STORE)
    with pytest.raises(FileNotFoundError):
        standing.commit(parts(OBJECTS))
    assert not (root / STORE).exists()


def test_a_removed_store_leaves_no_temporary_file(root: Path, standing: Commit) -> None:
    remove(root / STORE)
    with pytest.raises(FileNotFoundError):
        standing.commit(parts(OBJECTS))
    assert temporary_files(root) == []


def test_a_removed_store_is_made_again_once_folders_are_looked_at_again(
    root: Path, standing: Commit
) -> None:
    remove(root / STORE)
    standing.forget_folders()
    standing.commit(parts(OBJECTS))
    assert stored(root) == OBJECTS


STANDING = ["g/img"]


def test_an_array_that_must_stand_is_committed_to(root: Path, standing: Commit) -> None:
    standing.commit({"g/img/c/7/0": [b"new"]}, standing=STANDING)
    assert stored(root)["g/img/c/7/0"] == b"new"


@pytest.mark.parametrize("removed", [STORE, f"{STORE}/g", f"{STORE}/g/img"])
def test_nothing_is_made_of_an_array_that_must_stand_and_was_removed_before_its_first_commit(
    root: Path, standing: Commit, removed: str
) -> None:
    standing.release()
    fresh = commit_of(root)
    remove(root / removed)
    with pytest.raises(FileNotFoundError):
        fresh.commit({"g/img/c/0/0": [b"new"]}, standing=STANDING)
    assert not (root / removed).exists()


def test_folders_above_an_array_that_must_stand_are_synced_too(
    root: Path, standing: Commit, events: list[Event]
) -> None:
    standing.release()
    fresh = commit_of(root)
    events.clear()
    fresh.commit({"g/img/c/0/0": [b"new"]}, standing=STANDING)
    upwards = [root, root / "plate7", *(root / STORE / part for part in ("", "g", "g/img"))]
    assert all(synced(events, folder) for folder in upwards)


def test_a_link_above_an_array_that_must_stand_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside/img").mkdir(parents=True)
    (root / STORE).mkdir(parents=True)
    (root / STORE / "g").symlink_to(tmp_path / "outside")
    with pytest.raises(UnsafePath, match=r"d\.zarr/g is a symbolic link"):
        commit_of(root).commit({"g/img/c/0": [b"new"]}, standing=STANDING)


# -- removing -----------------------------------------------------------------------------------


def test_what_is_none_is_removed(root: Path, standing: Commit) -> None:
    standing.commit({"g/img/c/0/0": None, "g/img/c/0/1": [b"new"]})
    left = {key: content for key, content in OBJECTS.items() if key != "g/img/c/0/0"}
    assert stored(root) == left | {"g/img/c/0/1": b"new"}


def test_what_is_none_need_not_be_there(root: Path, standing: Commit) -> None:
    standing.commit({"g/img/c/9/9": None})
    assert stored(root) == OBJECTS


def test_a_removal_leaves_no_file_in_the_state_folder(root: Path, standing: Commit) -> None:
    standing.commit({"g/img/c/0/0": None})
    assert temporary_files(root) == []


@pytest.mark.parametrize("key", ["g/img/c/0/0", "g/img/c/0/9"], ids=["there", "not there"])
def test_the_folder_of_what_is_removed_is_synced_after(
    root: Path, standing: Commit, events: list[Event], key: str
) -> None:
    events.clear()
    standing.commit({key: None})
    assert events[-1][:2] == ("fsync", root / STORE / "g/img/c/0")


def test_a_folder_in_the_place_of_what_is_removed_stays(root: Path, standing: Commit) -> None:
    with pytest.raises(IsADirectoryError, match=r"g/img/c/0"):
        standing.commit({"g/img/c/0": None})
    assert stored(root) == OBJECTS


def test_a_link_in_the_place_of_what_is_removed_goes_and_not_what_it_leads_to(
    root: Path, standing: Commit, outside: Path
) -> None:
    (root / STORE / "g/img/c/0/2").symlink_to(outside)
    standing.commit({"g/img/c/0/2": None})
    assert not (root / STORE / "g/img/c/0/2").is_symlink()
    assert (outside / "0").read_bytes() == b"others'"


# -- the ledger ---------------------------------------------------------------------------------

LEDGER = f".tiles/{STORE}/ledger"


def test_the_ledger_is_written_in_its_folder(root: Path) -> None:
    commit_of(root).commit({}, {"g/img/.ledger.json": [b"a", b"b"]})
    assert (root / LEDGER / "g/img/.ledger.json").read_bytes() == b"ab"


def test_what_is_none_is_removed_from_the_ledger(root: Path) -> None:
    commit = commit_of(root)
    commit.commit({}, {"img/a": [b"a"], "img/b": [b"b"]})
    commit.commit({}, {"img/a": None})
    assert [path.name for path in (root / LEDGER / "img").iterdir()] == ["b"]


def test_data_is_durable_before_any_of_the_ledger_is_seen(root: Path, events: list[Event]) -> None:
    commit_of(root).commit(parts(OBJECTS), {"img/a": [b"a"], "img/b": [b"b"]})
    [first, *_] = (i for i, _, to in renames(events) if to.is_relative_to(root / LEDGER))
    folders = {(root / STORE / key).parent for key in OBJECTS}
    made = {event.path for event in of_kind(events, "mkdir")}
    above = {folder.parent for folder in made if folder.is_relative_to(root / "plate7")}
    assert all(synced(events, folder)[-1] < first for folder in (folders | above) - {root})


def test_the_ledger_is_durable_in_the_end(root: Path, events: list[Event]) -> None:
    commit_of(root).commit(parts(OBJECTS), {"img/a": [b"a"]})
    last = max(i for i, _, to in renames(events) if to.is_relative_to(root / LEDGER))
    upwards = (f".tiles/{STORE}", f"{LEDGER}", f"{LEDGER}/img")
    assert all(synced(events, root / folder)[-1] > last for folder in upwards)


def test_data_and_ledger_are_synced_side_by_side_before_anything_is_seen(
    root: Path, events: list[Event]
) -> None:
    commit_of(root).commit(parts(OBJECTS), {"img/a": [b"a"]})
    first = min(i for i, _, _ in renames(events))
    assert all(synced(events, temporary)[0] < first for _, temporary, _ in renames(events))


@pytest.mark.parametrize("fault", NOT_IN_PLACE.values(), ids=NOT_IN_PLACE)
def test_nothing_of_the_ledger_is_seen_where_data_is_not_durable(
    root: Path, standing: Commit, fault: Fault
) -> None:
    name, call, number = fault
    standing.commit({}, {"img/a": [b"old"]})
    more = 1 if name == "fsync" else 0  # of the ledger's file
    with pytest.MonkeyPatch.context() as faulty:
        failing(faulty, name, call + more, number)
        with pytest.raises(OSError, match=os.strerror(number)):
            standing.commit(parts(NEW), {"img/a": [b"new"]})
    assert (root / LEDGER / "img/a").read_bytes() == b"old"


def test_a_removed_ledger_folder_is_made_again_once_folders_are_looked_at_again(
    root: Path, standing: Commit
) -> None:
    standing.commit({}, {"img/a": [b"old"]})
    remove(root / LEDGER)
    with pytest.raises(FileNotFoundError):
        standing.commit({}, {"img/a": [b"new"]})
    standing.forget_folders()
    standing.commit({}, {"img/a": [b"new"]})
    assert (root / LEDGER / "img/a").read_bytes() == b"new"


# -- letting go ---------------------------------------------------------------------------------


def test_release_leaves_nothing_in_the_state_folder(root: Path, standing: Commit) -> None:
    standing.release()
    assert not (root / ".tiles").exists()


def test_release_leaves_the_store_and_the_ledger_alone(root: Path, standing: Commit) -> None:
    standing.commit({}, {"img/a": [b"a"]})
    standing.release()
    assert stored(root) == OBJECTS
    assert temporary_files(root) == [root / LEDGER / "img/a"]


def test_release_may_come_before_any_commit_and_twice(root: Path) -> None:
    commit = commit_of(root)
    commit.release()
    commit.release()
    assert not any(root.iterdir())


def test_nothing_is_committed_after_the_release(root: Path, standing: Commit) -> None:
    standing.release()
    with pytest.raises(Fenced, match=r"plate7/d\.zarr: the epoch 1-\w+ is over"):
        standing.commit(parts(NEW))
    assert stored(root) == OBJECTS


def test_release_leaves_stores_of_the_same_folder_at_work(root: Path, standing: Commit) -> None:
    other = Commit.take(root, "plate7/e.zarr", file_mode=0o644, folder_mode=0o755)
    other.commit(parts(OBJECTS))
    standing.release()
    other.commit(parts(OBJECTS))
    assert (root / "plate7/e.zarr/zarr.json").exists()


def released_before(
    monkeypatch: pytest.MonkeyPatch, name: str, is_it: Callable[[Path], bool], commit: Commit
) -> None:
    """Have a commit released just before the first matching call of a function of `os`."""
    real, left = getattr(os, name), [commit]

    def interrupted(path: Any, *args: Any, **options: Any) -> Any:
        if left and is_it(Path(path)):
            left.pop().release()
        return real(path, *args, **options)

    monkeypatch.setattr(os, name, interrupted)


@pytest.mark.parametrize("depth", range(4))
def test_release_leaves_another_alone_that_is_just_making_its_folders(
    root: Path, standing: Commit, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    state = [".tiles", ".tiles/plate7", f".tiles/{STORE}", f".tiles/{STORE}/epochs"][depth]
    released_before(monkeypatch, "mkdir", lambda path: path.parent == root / state, standing)
    commit_of(root).commit(parts(NEW))
    assert stored(root) == NEW


def test_release_leaves_the_probe_alone(
    root: Path, standing: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    released_before(monkeypatch, "mkdir", lambda path: path.parent == root / ".tiles", standing)
    probe(root)


def test_release_removes_what_a_crashed_write_left(root: Path, standing: Commit) -> None:
    epoch = root / ".tiles" / STORE / "epochs" / standing.epoch
    (epoch / "0123456789abcdef").write_bytes(b"a part of a chunk")
    standing.release()
    assert not (root / ".tiles").exists()


# -- the probe ----------------------------------------------------------------------------------


def test_the_probe_leaves_no_file(root: Path) -> None:
    probe(root)
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_the_probe_does_all_that_a_commit_does(root: Path, events: list[Event]) -> None:
    probe(root)
    names = [event.name for event in events if event.name != "mkdir"]
    assert names == ["writev", "fsync", "rename", "fsync"]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("mkdir", errno.EROFS),
        ("open", errno.EACCES),
        ("writev", errno.ENOSPC),
        ("fsync", errno.EIO),
        ("rename", errno.EIO),
    ],
)
def test_the_probe_fails_with_what_the_root_cannot_do(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    failing(monkeypatch, name, 0, number)
    with pytest.raises(OSError, match=os.strerror(number)):
        probe(root)


@pytest.mark.parametrize("name", ["writev", "fsync", "rename"])
def test_a_failed_probe_leaves_no_file(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failing(monkeypatch, name, 0)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        probe(root)
    assert [path for path in root.rglob("*") if path.is_file()] == []


def test_the_probe_of_a_missing_root_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "missing")
