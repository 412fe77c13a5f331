"""Failpoints happen where they are set, as often as was said, and nothing does without them."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from consumer.commit import Commit, Step, no_step
from consumer.errors import Fenced, UnusableSettings
from consumer.failpoints import STEPS, Failpoints, Unfenced
from consumer.settings import Settings, load
from harness import wait_until

STORE = "plate7/d.zarr"


def failpoints(text: str) -> Failpoints:
    """Return failpoints of a process that has no other."""
    return Failpoints(text, lambda: 1 << 30)


def taken(root: Path, kind: type[Commit] = Commit, step: Step = no_step) -> Commit:
    """Take the store."""
    return kind.take(root, STORE, file_mode=0o644, folder_mode=0o755, step=step)


def failures(points: Failpoints, name: str, passes: int, body: bytes = b"") -> int:
    """Pass a step so often; return how often that failed."""
    count = 0
    for _ in range(passes):
        try:
            points.reach(name, body)
        except OSError:
            count += 1
    return count


# -- what is said -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("nonsense", "must be name=action"),
        ("commit.write=explode", "must be name=action"),
        ("commit.write=stop#some", "must be name=action"),
        ("commit.wriet=stop", "names no step; the steps are take.list"),
        ("commit.write=stop:now", "takes no argument"),
        ("commit.write=stop@1.5", "from 0 to 1"),
        ("commit.write=error", "like error:EIO"),
        ("commit.write=error:EWHAT", "like error:EIO"),
        ("commit.write=sleep:long", "like sleep:60"),
        ("place=error:EIO", "place cannot fail"),
        ("acknowledge=kill:words", "takes no argument"),
        ("fence=of", "must be name=action"),
        ("sync=of", "must be name=action"),
        ("commit.write=stop;nonsense", "nonsense"),
    ],
)
def test_what_is_no_failpoint_is_refused_with_what_would_be_right(text: str, wanted: str) -> None:
    with pytest.raises(UnusableSettings, match="failpoints") as caught:
        load(["--output-root", "out", "--failpoints", text])
    assert wanted in str(caught.value)


def test_there_are_none_unless_told() -> None:
    assert Settings(output_root=Path("out")).failpoints == ""


def test_the_names_are_the_steps_of_a_commit(tmp_path: Path) -> None:
    passed: list[str] = []
    for _ in range(2):
        commit = taken(tmp_path, step=passed.append)
        commit.commit({"c/0": [b"x"]}, {"img/x": [b"x"]})
        commit.commit({"c/0": None}, {"img/x": None})
    commit.release()
    assert set(passed) == set(STEPS)


# -- what happens -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_without_failpoints_nothing_happens(name: str) -> None:
    assert failures(failpoints(""), name, 10) == 0


@pytest.mark.parametrize(
    ("text", "failing"),
    [
        ("commit.fsync=error:EIO", range(20, 21)),
        ("commit.fsync=error:EIO#3", range(3, 4)),
        ("commit.fsync=error:EIO@0", range(1)),
        ("commit.fsync=error:EIO@0.5", range(1, 20)),
        ("commit.fsync=error:EIO@0.9#2", range(2, 3)),
        ("commit.write=error:EIO", range(1)),
        ("commit.write=error:EIO; commit.fsync=error:EIO#4 ;", range(4, 5)),
        ("commit.fsync=error:EIO#1;commit.fsync=error:ENOSPC#1", range(2, 3)),
    ],
)
def test_a_step_fails_as_often_as_was_said(text: str, failing: range) -> None:
    assert failures(failpoints(text), "commit.fsync", 20) in failing


def test_a_step_fails_with_the_error_that_was_named() -> None:
    with pytest.raises(OSError, match=r"commit\.fsync") as caught:
        failpoints("commit.fsync=error:ENOSPC").reach("commit.fsync")
    assert caught.value.errno == errno.ENOSPC


def test_a_step_comes_later() -> None:
    began = time.monotonic()
    failpoints("commit.fsync=sleep:0.2").reach("commit.fsync")
    assert time.monotonic() - began >= 0.2


def test_a_step_of_a_commit_that_fails_leaves_what_was(tmp_path: Path) -> None:
    points = failpoints("commit.rename=error:EIO#1")
    commit = taken(tmp_path, step=points.reach)
    with pytest.raises(OSError, match=r"commit\.rename"):
        commit.commit({"c/0": [b"x"]})
    assert not (tmp_path / STORE / "c/0").exists()
    commit.commit({"c/0": [b"x"]})
    assert (tmp_path / STORE / "c/0").read_bytes() == b"x"


_PASSES = """
import sys
from consumer.failpoints import Failpoints

points = Failpoints(sys.argv[1], lambda: int(sys.argv[2]))
for line in sys.stdin:
    points.reach("place", line.encode())
    print("passed", flush=True)
"""


@contextlib.contextmanager
def processes(text: str) -> Iterator[tuple["subprocess.Popen[str]", "subprocess.Popen[bytes]"]]:
    """A process that passes `place` with each line that it reads, and the other one."""
    with subprocess.Popen(["sleep", "600"]) as other:
        arguments = [sys.executable, "-c", _PASSES, text, str(other.pid)]
        pipe = subprocess.PIPE
        with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True) as passing:
            try:
                yield passing, other
            finally:
                passing.kill()
                other.kill()


def say(passing: "subprocess.Popen[str]", line: str) -> None:
    """Have it pass the step."""
    assert passing.stdin is not None
    passing.stdin.write(f"{line}\n")
    passing.stdin.flush()


def has_passed(passing: "subprocess.Popen[str]") -> bool:
    """Whether it has passed the step; waits until it has, or has ended."""
    assert passing.stdout is not None
    return passing.stdout.readline() == "passed\n"


def test_both_processes_are_stopped_and_go_on_from_there() -> None:
    with processes("place=stop:bad#1") as both:
        say(both[0], "good")
        assert has_passed(both[0])
        say(both[0], "a bad one")
        for each in both:
            stopped = psutil.Process(each.pid)
            wait_until(lambda p=stopped: p.status() == psutil.STATUS_STOPPED, "a stop")  # type: ignore[misc]
        for each in both:
            each.send_signal(signal.SIGCONT)
        assert has_passed(both[0])
        say(both[0], "one more bad one")
        assert has_passed(both[0])


def test_both_processes_are_killed() -> None:
    with processes("place=kill:bad") as both:
        say(both[0], "good")
        assert has_passed(both[0])
        say(both[0], "a bad one")
        assert [each.wait(60) for each in both] == [-signal.SIGKILL] * 2
        assert not has_passed(both[0])


# -- without the fence --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"), [("", Commit), ("commit.write=stop", Commit), ("fence=off", Unfenced)]
)
def test_the_fence_is_off_only_where_that_is_said(text: str, wanted: type[Commit]) -> None:
    assert failpoints(text).commit is wanted


def test_without_the_fence_a_late_writer_writes(tmp_path: Path) -> None:
    early = taken(tmp_path, Unfenced)
    late = taken(tmp_path, Unfenced)
    late.commit({"c/0": [b"late"]})
    early.check()
    early.commit({"c/0": [b"early"]}, {"img/x": [b"early"]})
    assert (tmp_path / STORE / "c/0").read_bytes() == b"early"
    for commit in (early, late):
        commit.release()
    assert not (tmp_path / ".tiles" / STORE / "epochs").exists()


def test_with_the_fence_it_does_not(tmp_path: Path) -> None:
    early = taken(tmp_path)
    taken(tmp_path).commit({"c/0": [b"late"]})
    with pytest.raises(Fenced):
        early.commit({"c/0": [b"early"]})
    assert (tmp_path / STORE / "c/0").read_bytes() == b"late"


# -- without syncing ----------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "syncs"), [("fence=off", 3), ("fence=off;sync=off", 0)])
def test_files_and_folders_are_not_synced_only_where_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, syncs: int
) -> None:
    commit = taken(tmp_path)
    commit.commit({"c/0": [b"first"]})
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    failpoints(text).switch_off()
    commit.commit({"c/0": [b"x"], "c/1": [b"y"]})
    assert len(synced) == syncs
    assert (tmp_path / STORE / "c/1").read_bytes() == b"y"
