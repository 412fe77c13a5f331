"""What is handled alone, how many at once, and what of it outlives a killed process."""

import errno
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from consumer import journal
from consumer.errors import UnsafePath
from consumer.journal import EXPIRY_S, MOST_TOGETHER, Journal, together

ATTEMPTS = 3
THOUSAND = [f"{number:032x}" for number in range(1000)]
A, B = "a" * 32, "b" * 32


@pytest.mark.parametrize(
    ("messages", "cut_short", "count"),
    [
        pytest.param(THOUSAND, [], 1000, id="never-cut-all-at-once"),
        pytest.param(THOUSAND * 2, [], MOST_TOGETHER, id="no-more-than-a-file-should-name"),
        pytest.param(THOUSAND, [THOUSAND], 31, id="a-part-of-what-was-cut"),
        pytest.param(THOUSAND[31:], [THOUSAND], 31, id="the-next-part"),
        pytest.param(THOUSAND, [THOUSAND, THOUSAND[:31]], 1, id="a-part-of-the-part"),
        pytest.param(THOUSAND[31:], [THOUSAND, THOUSAND[:31]], 31, id="other-parts-as-before"),
        pytest.param([A, *THOUSAND], [THOUSAND], 31, id="with-one-that-came-later"),
        pytest.param([*THOUSAND[:40], A], [[A]], 40, id="up-to-one-that-must-be-alone"),
        pytest.param([A, *THOUSAND], [[A]], 1, id="one-that-must-be-alone"),
        pytest.param([A, B], [[A, B]], 1, id="of-two-each-alone"),
        pytest.param([A, A], [[A, A]], 1, id="the-same-twice"),
        pytest.param([A], [[A]] * (ATTEMPTS - 1), 1, id="once-more"),
        pytest.param([A, B], [[A]] * ATTEMPTS, 0, id="once-too-often"),
        pytest.param([B, A], [[A]] * ATTEMPTS, 1, id="another-that-was-too-often"),
        pytest.param([A], [[A, B]] * 9, 1, id="never-blamed-for-what-was-cut-with-another"),
    ],
)
def test_how_many_are_handled_together(
    messages: Sequence[str], cut_short: Sequence[Sequence[str]], count: int
) -> None:
    assert together(messages, cut_short, ATTEMPTS) == count


@pytest.mark.parametrize("killer", [0, 1, 500, 999])
@pytest.mark.parametrize("count", [1, 2, 40, 1000])
def test_only_the_one_that_kills_is_parked_and_soon(killer: int, count: int) -> None:
    """Handle all, in order, until one was parked or all went well; at the killer, all is cut."""
    queue = THOUSAND[:count]
    bad = queue[killer % count]
    cut: list[Sequence[str]] = []
    parked: list[str] = []
    while queue:
        first = together(queue, cut, ATTEMPTS)
        if not first:
            parked.append(queue.pop(0))
        elif bad in queue[:first]:
            cut.append(queue[:first])
        else:
            queue = queue[first:]
    assert parked == [bad]
    assert len(cut) <= ATTEMPTS + 2


def make(root: Path, *, by: str = "one", now: float | None = None) -> Journal:
    """Return the journal as a process that has just started sees it."""
    clock: dict[str, Any] = {} if now is None else {"clock": lambda: now}
    return Journal(root, by=by, attempts=ATTEMPTS, file_mode=0o640, folder_mode=0o750, **clock)


def files(root: Path) -> list[Path]:
    """All files of the journal."""
    folder = root / ".tiles/lone"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_what_a_killed_process_began_another_replica_goes_on_with(tmp_path: Path) -> None:
    assert make(tmp_path).begin([A, B]).count == 2
    for times in range(ATTEMPTS):
        begun = make(tmp_path, by=f"replica-{times}").begin([A, B])
        assert (begun.count, begun.cut) == (1, True)
    assert make(tmp_path).begin([A, B]).count == 0


def test_what_ended_in_order_does_not_count(tmp_path: Path) -> None:
    for _ in range(2 * ATTEMPTS):
        one = make(tmp_path)
        begun = one.begin([A, B])
        assert (begun.count, begun.cut) == (2, False)
        one.end(begun.entry, [])
    assert files(tmp_path) == []


def test_a_message_that_is_settled_starts_over(tmp_path: Path) -> None:
    for _ in range(ATTEMPTS):
        make(tmp_path).begin([A])
    make(tmp_path).begin([B])
    one = make(tmp_path)
    assert one.begin([A]).count == 0
    one.end("", [A])
    assert make(tmp_path).begin([A]).count == 1
    assert len(files(tmp_path)) == 2  # of A and of B


def test_an_entry_is_durable_before_anything_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noting(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(name.suffix or name.name)
        fsync(descriptor)

    def renaming(path: Path, target: Path) -> Path:
        synced.append(f"renamed to {target.suffix}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(Path, "rename", renaming)
    one = make(tmp_path)
    one.begin([A])
    assert synced[:2] == [".part", "renamed to .json"]
    assert set(synced[2:]) == {"lone", ".tiles", tmp_path.name}
    synced.clear()
    one.begin([B])
    assert synced == [".part", "renamed to .json", "lone"]


def test_files_and_folders_have_the_modes_that_are_set(tmp_path: Path) -> None:
    make(tmp_path).begin([A])
    [file] = files(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o640
    assert file.parent.stat().st_mode & 0o777 == 0o750
    assert json.loads(file.read_text())["by"] == "one"


@pytest.mark.parametrize("late", [False, True])
def test_what_was_cut_short_counts_for_a_day(tmp_path: Path, late: bool) -> None:
    for _ in range(ATTEMPTS):
        make(tmp_path).begin([A])
    (tmp_path / ".tiles/lone/0123456789abcdef.part").touch()
    written = files(tmp_path)[-1].stat().st_mtime
    later = make(tmp_path, now=written + EXPIRY_S + (1 if late else -60))
    later.sweep()
    assert len(files(tmp_path)) == (0 if late else ATTEMPTS)
    assert later.begin([A]).count == (1 if late else 0)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"messages": 3}', '{"messages": [3]}', '{"messages": []}', "\xff"]
)
def test_a_damaged_file_counts_as_missing(tmp_path: Path, content: str) -> None:
    folder = tmp_path / ".tiles/lone"
    folder.mkdir(parents=True)
    (folder / "0123456789abcdef.json").write_text(content, "latin-1")
    begun = make(tmp_path).begin([A])
    assert (begun.count, begun.cut) == (1, False)


def test_the_state_of_a_store_of_that_name_is_none_of_its_business(tmp_path: Path) -> None:
    ledger = tmp_path / ".tiles/lone/0123456789abcdef.json/a.zarr/ledger/x"
    ledger.mkdir(parents=True)
    old = make(tmp_path, now=ledger.stat().st_mtime + 2 * EXPIRY_S)
    old.sweep()
    assert old.begin([A]).count == 1
    assert ledger.is_dir()


def test_a_folder_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    one = make(tmp_path)
    one.end(one.begin([A]).entry, [A])
    (tmp_path / ".tiles/lone").rmdir()
    (tmp_path / ".tiles").rmdir()
    assert one.begin([A]).count == 1
    assert len(files(tmp_path)) == 1


def test_a_link_in_its_place_is_refused(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (root / ".tiles").mkdir(parents=True)
    (root / ".tiles/lone").symlink_to(outside)
    with pytest.raises(UnsafePath):
        make(root).begin([A])
    assert list(outside.iterdir()) == []


def test_a_write_that_fails_begins_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            one.begin([A])
    assert files(tmp_path) == []
    assert one.begin([A]).cut is False


@pytest.mark.parametrize("removable", [True, False])
def test_an_entry_whose_folder_cannot_be_synced_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removable: bool
) -> None:
    one = make(tmp_path)

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(journal, "sync_folder", failing)
        if not removable:
            patched.setattr(Path, "unlink", failing)
        for _ in range(ATTEMPTS):
            with pytest.raises(OSError, match="Input/output"):
                one.begin([A])
    begun = one.begin([A])
    assert (begun.count, begun.cut) == (1, False)
    assert [path.name for path in files(tmp_path)] == [begun.entry]


def test_what_cannot_be_removed_is_not_counted_and_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(tmp_path)

    def stuck(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", stuck)
        for _ in range(ATTEMPTS + 1):
            begun = one.begin([A])
            assert (begun.count, begun.cut) == (1, False)
            one.end(begun.entry, [])
    assert len(files(tmp_path)) == ATTEMPTS + 1
    one.end("", [])
    assert files(tmp_path) == []


def test_what_a_kill_left_half_written_is_removed_soon(tmp_path: Path) -> None:
    now = [time.time()]
    journal = Journal(
        tmp_path, by="c1", attempts=3, file_mode=0o644, folder_mode=0o755, clock=lambda: now[0]
    )
    assert journal.begin(["a"]).count == 1
    part = tmp_path / ".tiles/lone/0123456789abcdef.part"
    part.touch()
    journal.sweep()
    assert part.exists()
    now[0] += 5
    journal.sweep()
    assert not part.exists()
    assert len(list(part.parent.iterdir())) == 1
