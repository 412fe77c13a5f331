"""One owner of a store at a time, and nothing of an earlier one once the next has taken it."""

import errno
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from interleaved import History

from consumer.commit import Commit, Step, no_step
from consumer.errors import Fenced
from consumer.files import write_file

STORE = "plate7/d.zarr"
HISTORIES = 1000 if os.environ.get("FULL") else 100
BEFORE = {"a": b"a before", "c/b": b"b before", "c/gone": b"to be removed"}


def taken(root: Path, step: Step = no_step) -> Commit:
    """Take the store."""
    return Commit.take(root, STORE, file_mode=0o644, folder_mode=0o755, step=step)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An output root with a store in it, and what a crash left of its owner."""
    root = tmp_path / "root"
    root.mkdir()
    commit = taken(root)
    commit.commit({key: [content] for key, content in BEFORE.items()}, {"img/x": [b"before"]})
    (epochs(root) / commit.epoch / "0123456789abcdef").write_bytes(b"a part of a chunk")
    return root


def epochs(root: Path) -> Path:
    """Return the folder of epochs."""
    return root / ".tiles" / STORE / "epochs"


def fenced(root: Path) -> Path:
    """Return the folder that earlier epochs are renamed to."""
    return root / ".tiles" / STORE / "fenced"


def seen(root: Path) -> dict[str, bytes]:
    """Return all files of the store and the ledger, by path."""
    folders = (root / STORE, root / ".tiles" / STORE / "ledger")
    paths = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def names(folder: Path) -> list[str]:
    """Return what a folder holds."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# -- one tenure ---------------------------------------------------------------------------------


def test_an_epoch_is_one_above_the_highest(root: Path) -> None:
    assert [taken(root).epoch.partition("-")[0] for _ in range(3)] == ["2", "3", "4"]


def test_only_the_own_epoch_is_left_after_taking(root: Path) -> None:
    commit = taken(root)
    assert names(epochs(root)) == [commit.epoch]
    assert names(fenced(root)) == []


def test_taking_changes_nothing_in_the_store(root: Path) -> None:
    before = seen(root)
    taken(root)
    assert seen(root) == before


def test_the_earlier_owner_is_fenced(root: Path) -> None:
    earlier, later = taken(root), taken(root)
    with pytest.raises(Fenced, match=rf"plate7/d\.zarr: the epoch {earlier.epoch} is over"):
        earlier.check()
    later.check()


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a write": ({"a": [b"late"]}, {}),
    "a write in a folder to be made": ({"new/c/0": [b"late"]}, {}),
    "a removal": ({"a": None}, {}),
    "a removal of what is not there": ({"c/9": None}, {}),
    "the ledger": ({}, {"img/x": [b"late"]}),
    "a removal from the ledger": ({}, {"img/x": None}),
    "many": ({f"c/{i}": [b"late"] for i in range(20)}, {"img/x": [b"late"]}),
}


@pytest.mark.parametrize(("data", "ledger"), CHANGES.values(), ids=CHANGES)
def test_a_fenced_owner_changes_no_file(
    root: Path, data: dict[str, Any], ledger: dict[str, Any]
) -> None:
    earlier, _later = taken(root), taken(root)
    before = seen(root)
    with pytest.raises(Fenced):
        earlier.commit(data, ledger)
    assert seen(root) == before


def test_a_fenced_owner_never_makes_its_epoch_again(root: Path) -> None:
    earlier, later = taken(root), taken(root)
    with pytest.raises(Fenced):
        earlier.commit({"a": [b"late"]})
    assert names(epochs(root)) == [later.epoch]


def test_a_fenced_owner_stays_fenced_when_the_next_one_has_released(root: Path) -> None:
    earlier, later = taken(root), taken(root)
    later.release()
    with pytest.raises(Fenced):
        earlier.commit({"a": [b"late"]})


def test_a_fenced_owner_that_releases_leaves_the_next_one_at_work(root: Path) -> None:
    earlier, later = taken(root), taken(root)
    earlier.release()
    later.commit({"a": [b"ours"]})
    assert seen(root)[f"{STORE}/a"] == b"ours"


def test_a_removed_state_folder_fences_the_owner(root: Path) -> None:
    commit = taken(root)
    (epochs(root) / commit.epoch).rmdir()
    with pytest.raises(Fenced):
        commit.commit({"a": [b"late"]})
    taken(root).commit({"a": [b"ours"]})


def test_what_a_network_file_system_says_of_a_removed_folder_is_fenced_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = taken(root)

    def stale(*_args: Any, **_options: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "open", stale)
    monkeypatch.setattr(os, "stat", stale)
    with pytest.raises(Fenced):
        commit.commit({"a": [b"late"]})


def test_stores_are_taken_one_by_one(root: Path) -> None:
    commit = taken(root)
    other = Commit.take(root, "plate7/e.zarr", file_mode=0o644, folder_mode=0o755)
    commit.check()
    other.check()


# -- what crashes leave -------------------------------------------------------------------------


Leave = Callable[[Path], object]


def file(*path: str) -> Leave:
    """Return what leaves a file at a path of the store's state folder."""

    def leave(state: Path) -> None:
        file = state.joinpath(*path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"debris")

    return leave


def link(*path: str) -> Leave:
    """Return what leaves a link to the store."""

    def leave(state: Path) -> None:
        link = state.joinpath(*path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(state.parents[2] / STORE)

    return leave


def folder(*path: str) -> Leave:
    """Return what leaves an empty folder."""
    return lambda state: state.joinpath(*path).mkdir(parents=True)


DEBRIS: dict[str, list[Leave]] = {
    "a file of an epoch": [file("epochs", "7-x", "tmp")],
    "many files of an epoch": [file("epochs", "7-x", str(i)) for i in range(99)],
    "an epoch without files": [folder("epochs", "7-x")],
    "many epochs": [file("epochs", f"{i}-x", "tmp") for i in range(9)],
    "an epoch renamed away": [file("fenced", "7-x", "tmp")],
    "an epoch renamed away and empty": [folder("fenced", "7-x")],
    "one name in both": [file("epochs", "7-x", "tmp"), file("fenced", "7-x", "tmp")],
    "a folder in an epoch": [file("epochs", "7-x", "folder", "tmp")],
    "a file in an epoch's place": [file("epochs", "7-x")],
    "a file in the place of one renamed away": [file("fenced", "7-x")],
    "a name without a number": [file("epochs", "notes", "tmp")],
    "a name that is a number": [file("epochs", "9" * 200, "tmp")],
    "a digit that is none": [file("epochs", "²-x", "tmp")],
    "a link": [link("epochs", "7-x")],
    "a link in an epoch": [link("epochs", "7-x", "tmp")],
    "a link among those renamed away": [link("fenced", "7-x")],
}


@pytest.mark.parametrize("leave", DEBRIS.values(), ids=DEBRIS)
def test_debris_goes_when_the_store_is_taken(root: Path, leave: list[Leave]) -> None:
    for each in leave:
        each(root / ".tiles" / STORE)
    before = seen(root)
    commit = taken(root)
    assert names(epochs(root)) == [commit.epoch]
    assert names(fenced(root)) == []
    assert seen(root) == before


def test_a_name_that_is_taken_already_is_not_taken_over(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = epochs(root) / "2-same"
    tokens = iter(["same", "other"])
    monkeypatch.setattr("secrets.token_hex", lambda _bytes: next(tokens))

    def before(step: str) -> None:
        if step == "take.mkdir" and not theirs.exists():
            theirs.mkdir()

    assert taken(root, before).epoch == "3-other"


def test_files_that_cannot_be_removed_keep_the_store_from_being_taken(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Any, *_args: Any, **_options: Any) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    monkeypatch.setattr(os, "rmdir", full)
    with pytest.raises(OSError, match="files of an earlier epoch cannot be removed"):
        taken(root)


# -- calls that have found the epoch's folder already ----------------------------------------------


class Late:
    """Calls of an owner that found their folders before it was fenced, and are done in them.

    The folder is held open, which leads to it wherever it is moved, as the kernel's own hold does.
    """

    def __init__(self, root: Path) -> None:
        commit = taken(root)
        folder = epochs(root) / commit.epoch
        (folder / "tmp").write_bytes(b"late")
        self._root = root
        self.epoch = commit.epoch
        self.held = os.open(folder, os.O_PATH | os.O_DIRECTORY)

    def rename_out(self) -> None:
        """Make a temporary file visible."""
        os.rename("tmp", self._root / STORE / "a", src_dir_fd=self.held)

    def rename_in(self) -> None:
        """Remove a file of the store."""
        os.rename(self._root / STORE / "a", "gone", dst_dir_fd=self.held)

    def create(self) -> None:
        """Make a temporary file."""
        os.close(os.open("new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=self.held))


@pytest.fixture
def late(root: Path) -> Iterator[Late]:
    """An owner that is about to be fenced."""
    late = Late(root)
    yield late
    os.close(late.held)


CALLS = [Late.rename_out, Late.rename_in, Late.create]
CALL_IDS = [call.__name__ for call in CALLS]


@pytest.mark.parametrize("call", CALLS, ids=CALL_IDS)
def test_a_call_that_had_found_the_folder_fails_once_the_store_is_taken(
    root: Path, late: Late, call: Callable[[Late], None]
) -> None:
    before = seen(root)
    taken(root)
    with pytest.raises(FileNotFoundError):
        call(late)
    assert seen(root) == before


@pytest.mark.parametrize("call", CALLS, ids=CALL_IDS)
def test_a_call_that_succeeds_in_the_folder_renamed_away_does_so_before_the_taking_ends(
    root: Path, late: Late, call: Callable[[Late], None]
) -> None:
    calls = iter([call])
    done: list[str] = []

    def step(name: str) -> None:
        if name == "remove.empty":
            for each in calls:
                each(late)
                done.append(name)

    commit = taken(root, step)
    assert done
    commit.check()
    assert names(fenced(root)) == []


def test_a_file_that_comes_while_the_folder_is_emptied_makes_the_taker_look_again(
    root: Path, late: Late, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_folder, tries = os.rmdir, iter([late.create])

    def rmdir(path: Any, **options: Any) -> None:
        if Path(path).name == late.epoch:
            for create in tries:
                create()
        remove_folder(path, **options)

    monkeypatch.setattr(os, "rmdir", rmdir)
    looks: list[str] = []
    taken(root, looks.append)
    assert looks.count("take.list") == 4
    assert names(fenced(root)) == []


# -- several that take at once ------------------------------------------------------------------


def test_the_one_that_orders_lower_gives_up(root: Path) -> None:
    later: list[Commit] = []

    def before(step: str) -> None:
        # Between its folder and its second look.
        if step == "take.list" and any(name.startswith("2-") for name in names(epochs(root))):
            later.append(taken(root))

    with pytest.raises(Fenced, match="another consumer takes it at the same time"):
        taken(root, before)
    later[0].commit({"a": [b"ours"]})
    assert names(epochs(root)) == [later[0].epoch]


def test_the_one_that_orders_higher_removes_the_other_that_looked_too_early(root: Path) -> None:
    earlier: list[Commit] = []

    def before(step: str) -> None:
        # After its look at the highest, before its folder: the other has the same number.
        if step == "take.mkdir" and not earlier:
            earlier.append(taken(root))

    tokens = iter(["f", "0"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.token_hex", lambda _bytes: next(tokens))
        later = taken(root, before)
    assert (later.epoch, earlier[0].epoch) == ("2-f", "2-0")
    with pytest.raises(Fenced):
        earlier[0].commit({"a": [b"late"]})
    later.commit({"a": [b"ours"]})


def test_a_taker_whose_epoch_is_over_before_it_is_done_gives_up(root: Path) -> None:
    def before(step: str) -> None:
        if step == "take.remove":
            # Another takes the store, and is done with it.
            taken(root).release()

    with pytest.raises(Fenced):
        taken(root, before)


def test_a_taker_that_fails_leaves_no_epoch(root: Path) -> None:
    def before(step: str) -> None:
        if step == "take.remove":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    before_it = names(epochs(root))
    with pytest.raises(OSError, match="Input/output error"):
        taken(root, before)
    assert names(epochs(root)) == before_it


def test_what_another_taker_renames_away_during_the_look_is_found(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [dead] = epochs(root).iterdir()
    look, looks = os.listdir, iter(range(9))

    def listdir(path: Path) -> list[str]:
        # The first is for the highest number. The other taker then dies.
        if Path(path) == epochs(root) and next(looks) == 1:
            fenced(root).mkdir(exist_ok=True)
            dead.rename(fenced(root) / dead.name)
        return look(path)

    monkeypatch.setattr(os, "listdir", listdir)
    taken(root)
    assert names(fenced(root)) == []


def test_one_of_many_threads_has_the_store_in_the_end(root: Path) -> None:
    def take(_number: int) -> list[Commit]:
        with suppress(Fenced):
            return [taken(root)]
        return []

    with ThreadPoolExecutor(16) as threads:
        ended = [commit for commits in threads.map(take, range(64)) for commit in commits]
    [owner] = [commit for commit in ended if stands(commit)]
    assert names(epochs(root)) == [owner.epoch]


def stands(commit: Commit) -> bool:
    """Whether the epoch is not over."""
    try:
        commit.check()
    except Fenced:
        return False
    return True


_RIVAL = f"""
import sys
from pathlib import Path
from consumer.commit import Commit
from consumer.errors import Fenced
commit = None
for line in sys.stdin:
    try:
        if line == "take\\n":
            commit = Commit.take(Path(sys.argv[1]), {STORE!r}, file_mode=0o644, folder_mode=0o755)
        elif commit is None:
            raise Fenced("it never had the store")
        else:
            commit.commit({{"a": [commit.epoch.encode()]}})
        print(commit.epoch, flush=True)
    except Fenced:
        print("fenced", flush=True)
"""


Process: TypeAlias = "subprocess.Popen[str]"


@contextmanager
def started(program: str, *arguments: object) -> Iterator[Process]:
    """Start a Python process, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_of_many_processes_has_the_store_in_the_end(root: Path) -> None:
    with ExitStack() as stack:
        rivals = [stack.enter_context(started(_RIVAL, root)) for _ in range(6)]
        for _ in range(20):
            told(rivals, "take")
            committed = [said for said in told(rivals, "commit") if said != "fenced"]
            assert [(root / STORE / "a").read_text()] == committed


def told(rivals: list[Process], word: str) -> list[str]:
    """Tell all of them at once; return what each answers."""
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write(f"{word}\n")
        rival.stdin.flush()
    return [rival.stdout.readline().strip() for rival in rivals if rival.stdout is not None]


@pytest.mark.parametrize("first", range(0, HISTORIES, 50))
def test_no_acknowledged_write_is_lost_whatever_the_order(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 50):
        folder = tmp_path / str(seed)
        folder.mkdir()
        assert History(folder, seed).lost() == set(), f"seed {seed}"


def take_without_removing(self: Any, _store: str) -> Path:
    """Take a store, and let others have it too."""
    made: Path = self.make()
    return made


def remove_in_place(_self: Any, target: Path) -> None:
    """Remove a file as if there were no fence."""
    target.unlink(missing_ok=True)


def write_anyway(self: Any, temporary: Path, content: Any) -> None:
    """Write a temporary file, and make the epoch's folder for it."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    write_file(temporary, content, self._file_mode)


def name_elsewhere(self: Any) -> Path:
    """Return the name of a temporary file outside the epoch."""
    store: Path = self._store
    return store / secrets.token_hex(8)


FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "the taker does not remove earlier epochs": ("Epochs.take", take_without_removing),
    "files are not removed by way of the epoch": ("Commit._remove", remove_in_place),
    "the commit makes its epoch's folder": ("Commit._write", write_anyway),
    "temporary files lie outside the epoch": ("Commit._new_name", name_elsewhere),
}


@pytest.mark.parametrize(("what", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fence_with_a_fault_loses_acknowledged_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, fault: Callable[..., Any]
) -> None:
    monkeypatch.setattr(f"consumer.commit.{what}", fault)
    for seed in range(100):
        folder = tmp_path / str(seed)
        folder.mkdir()
        if History(folder, seed).lost():
            return
    pytest.fail("not found")


# -- an owner that was stopped anywhere ---------------------------------------------------------

# Every step of an owner that takes, commits and releases, in order.
STEPS = [
    "take.list",
    "take.mkdir",
    "take.list",
    "take.remove",
    "remove.empty",
    "take.list",
    "commit.make_folders",
    *["commit.write", "commit.fsync"] * 4,
    *["commit.rename"] * 3,
    "commit.remove",
    *["commit.sync_folder"] * 5,
    "ledger.rename",
    *["ledger.sync_folder"] * 6,
    "release",
    "remove.empty",
]
# The last at which anything is still to be changed.
LAST = STEPS.index("ledger.rename")

_OWNER = f"""
import itertools, os, signal, sys
from pathlib import Path
import consumer.commit
from consumer.commit import Commit
from consumer.errors import Fenced

root, stop_at, number = Path(sys.argv[1]), int(sys.argv[2]), getattr(signal, sys.argv[3])
steps = itertools.count()

def step(name):
    if next(steps) == stop_at:
        os.kill(os.getpid(), number)

try:
    commit = Commit.take(root, {STORE!r}, file_mode=0o644, folder_mode=0o755, step=step)
    commit.commit(
        {{"a": [b"late"], "c/b": [b"late"], "new/x": [b"late"], "c/gone": None}},
        {{"img/x": [b"late"]}},
    )
    commit.release()
except Fenced:
    print("fenced")
else:
    print("done")
"""


def test_these_are_the_steps(root: Path) -> None:
    steps: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consumer.commit.side_by_side", one_by_one)
        commit = taken(root, steps.append)
        commit.commit(
            {"a": [b"late"], "c/b": [b"late"], "new/x": [b"late"], "c/gone": None},
            {"img/x": [b"late"]},
        )
        commit.release()
    assert steps == STEPS


def one_by_one(work: Callable[[Any], None], items: Any) -> None:
    """Do the work for one item after the other."""
    for item in items:
        work(item)


@pytest.fixture(params=range(1, len(STEPS)), ids=[f"{i}-{n}" for i, n in enumerate(STEPS) if i])
def stopped(root: Path, request: pytest.FixtureRequest) -> Iterator[Process]:
    """An owner that is stopped before one of its steps, after its first look."""
    with started(_OWNER, root, request.param, "SIGSTOP") as owner:
        _, status = os.waitpid(owner.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        yield owner


def test_an_owner_that_was_stopped_anywhere_changes_no_file_once_another_has_taken_the_store(
    root: Path, stopped: Process, request: pytest.FixtureRequest
) -> None:
    at = request.node.callspec.params["stopped"]
    taken(root)  # one more, so that not chance decides between equal numbers
    commit = taken(root)
    commit.commit({"a": [b"ours"], "c/gone": [b"ours"]}, {"img/x": [b"ours"]})
    before = seen(root)
    stopped.send_signal(signal.SIGCONT)
    said, _ = stopped.communicate()
    assert seen(root) == before
    assert said == ("fenced\n" if at <= LAST else "done\n")
    commit.commit({"a": [b"ours again"]})


@pytest.mark.parametrize("at", range(len(STEPS)), ids=[f"{i}-{n}" for i, n in enumerate(STEPS)])
def test_an_owner_that_dies_anywhere_leaves_whole_files_and_nothing_that_the_next_one_keeps(
    root: Path, at: int
) -> None:
    with started(_OWNER, root, at, "SIGKILL") as owner:
        assert owner.wait() == -signal.SIGKILL
    commit = taken(root)
    after = seen(root)
    assert after[f".tiles/{STORE}/ledger/img/x"] == (b"late" if at > LAST else b"before")
    assert {after[f"{STORE}/{key}"] for key in ("a", "c/b")} <= {b"a before", b"b before", b"late"}
    commit.release()
    assert names(root / ".tiles" / STORE) == ["ledger"]
