"""What is tried out at the output root, and what a kill leaves of it."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from consumer.errors import UnsafePath
from consumer.filesystem import examine, examine_clock
from consumer.findings import Verdict
from consumer.keys import TRIALS_FOLDER, check_store_key
from consumer.trials import probe, workspace

TRIED: dict[str, Callable[[Path], object]] = {
    "probe": probe,
    "file system": lambda root: list(examine(root, None)),
    "clock": lambda root: list(examine_clock(root)),
}


@pytest.fixture(params=TRIED)
def tried(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    """Each that tries something at a root."""
    return TRIED[request.param]


def left_by_a_kill(root: Path, age_s: float) -> list[Path]:
    """Leave what a kill leaves, so many seconds old: a trial, and a file that it moved out."""
    folder = root / TRIALS_FOLDER / "0123456789abcdef"
    moved = root / ".tiles-0123456789abcdef"
    (folder / "trial").mkdir(parents=True)
    (folder / "trial" / "file").touch()
    moved.touch()
    for path in (folder, moved):
        os.utime(path, (0, time.time() - age_s))
    return [folder, moved]


def test_no_store_key_leads_to_where_it_is_tried() -> None:
    with pytest.raises(UnsafePath):
        check_store_key(f"{Path(TRIALS_FOLDER).name}/a.zarr")


def test_a_trial_leaves_nothing(tmp_path: Path, tried: Callable[[Path], object]) -> None:
    tried(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_later_trial_removes_what_a_kill_left(
    tmp_path: Path, tried: Callable[[Path], object]
) -> None:
    folder, _moved = left_by_a_kill(tmp_path, 600)
    tried(tmp_path)
    assert not folder.exists()


def test_a_later_look_at_the_file_system_removes_the_file_that_a_killed_one_moved_out(
    tmp_path: Path,
) -> None:
    left_by_a_kill(tmp_path, 600)
    list(examine(tmp_path, None))
    assert list(tmp_path.iterdir()) == []


def test_a_trial_leaves_others_alone_that_are_under_way(
    tmp_path: Path, tried: Callable[[Path], object]
) -> None:
    left = left_by_a_kill(tmp_path, 1)
    tried(tmp_path)
    assert [path.exists() for path in left] == [True, True]


def test_a_root_that_may_not_be_listed_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir

    def refused(path: Path) -> list[str]:
        if path == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refused)
    assert {found.verdict for found in examine(tmp_path, None)} <= {Verdict.OK, Verdict.WARNING}


@pytest.mark.parametrize("name", [".tiles-0123456789abcdef", ".tiles/check.zarr", "probe.zarr"])
def test_a_folder_that_may_hold_stores_stays(
    tmp_path: Path, tried: Callable[[Path], object], name: str
) -> None:
    (tmp_path / name).mkdir(parents=True)
    os.utime(tmp_path / name, (0, 0))
    tried(tmp_path)
    assert (tmp_path / name).is_dir()


def test_a_trial_that_was_taken_for_a_leftover_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    removed: list[Path] = []

    def slow(path: Path, target: Path) -> Path:
        if not removed:
            removed.append(path.parent)
            os.utime(path.parent, (0, 0))
            with workspace(tmp_path):
                assert not path.parent.exists()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", slow)
    probe(tmp_path)
    assert removed
