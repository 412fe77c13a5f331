"""Owners of one store at once, in threads that go on one at a time, in the order of a seed.

Each takes the store, reads a file, adds a mark to what it read and commits, for some rounds. Some
stop for long, or for good as in a crash, and not only between calls of the system: a call may have
found its folders before and be done in them afterwards, wherever they are by then; and a listing
may or may not hold what came or went while it was read, as POSIX has it.
"""

import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from consumer.commit import Commit
from consumer.errors import Fenced

STORE = "s.zarr"
FILES = ("even", "odd")
ROUNDS = 3
_LONGEST_TURN = 30
_CRASHES_ONE_TURN_IN = 60


class _Ended(BaseException):
    """The history is over."""


class _Owner:
    """One owner, and the thread that it is."""

    def __init__(self, history: "History", name: str) -> None:
        self._history = history
        self._name = name
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name)
        self.alive = True
        self.acknowledged: list[str] = []

    def start(self) -> None:
        """Let it go to its first step."""
        self._thread.start()
        self._waits.acquire()

    def turn(self) -> None:
        """Let it go on to its next step."""
        self._go.release()
        self._waits.acquire()

    def end(self) -> None:
        """Let it end where it is."""
        if self.alive:
            self._go.release()
        self._thread.join()

    def step(self) -> None:
        """Wait for the next turn; called by the owner's thread."""
        if not self._history.over:
            self._waits.release()
            self._go.acquire()
        if self._history.over:
            raise _Ended

    def _run(self) -> None:
        self._history.owners[threading.get_ident()] = self
        try:
            self.step()
            for number in range(ROUNDS):
                self._round(f"{self._name}{number}")
        except _Ended:
            return
        finally:
            self.alive = False
            self._waits.release()

    def _round(self, mark: str) -> None:
        root = self._history.root
        try:
            commit = Commit.take(root, STORE, file_mode=0o644, folder_mode=0o755)
            for number in range(2):
                held, own = marks(root), f"{mark}.{number}"
                # The marks are in one of two files, and go from one to the other.
                old, new = FILES if (root / STORE / FILES[0]).exists() else FILES[::-1]
                text = " ".join(sorted({*held, own})).encode()
                commit.commit({new: [text], old: None})
                self.acknowledged.append(own)
            if self._history.random.random() < 0.5:
                commit.release()
        except Fenced:
            pass


class History:
    """What some owners do to one store, in the order of a seed."""

    def __init__(self, root: Path, seed: int, owners: int = 3) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.over = False
        self.owners: dict[int, _Owner] = {}
        self._all = [_Owner(self, name) for name in "ABCDEFGH"[:owners]]

    def lost(self) -> set[str]:
        """Return the marks that were acknowledged and are not there in the end."""
        with self._patched():
            for owner in self._all:
                owner.start()
            self._play()
            self.over = True
            for owner in self._all:
                owner.end()
        taken = Commit.take(self.root, STORE, file_mode=0o644, folder_mode=0o755)
        taken.release()
        return {mark for owner in self._all for mark in owner.acknowledged} - marks(self.root)

    def _play(self) -> None:
        going = list(self._all)
        while going := [owner for owner in going if owner.alive]:
            owner = self.random.choice(going)
            for _ in range(self.random.randrange(_LONGEST_TURN)):
                if owner.alive:
                    owner.turn()
            if self.random.randrange(_CRASHES_ONE_TURN_IN) == 0:
                going.remove(owner)

    @contextmanager
    def _patched(self) -> Iterator[None]:
        with ExitStack() as patches:
            for name, paths in _CALLS.items():
                patches.enter_context(mock.patch.object(os, name, self._stopping(name, paths)))
            patches.enter_context(mock.patch.object(os, "listdir", self._weak_listdir(os.listdir)))
            patches.enter_context(mock.patch.object(os, "fsync"))
            patches.enter_context(mock.patch("consumer.commit.side_by_side", _one_by_one))
            patches.enter_context(mock.patch("secrets.token_hex", self._token))
            yield

    def _token(self, nbytes: int) -> str:
        return self.random.randbytes(nbytes).hex()

    def _stopping(self, name: str, folders: tuple[str, ...]) -> Callable[..., Any]:
        """Return a call of the system that stops after it has found the folders of its paths."""
        real, opened = getattr(os, name), os.open

        def stops(*args: Any, **options: Any) -> Any:
            owner = self.owners.get(threading.get_ident())
            if owner is None or any(options.values()) or not _changes(name, args):
                return real(*args, **options)
            paths, rest = args[: len(folders)], args[len(folders) :]
            with ExitStack() as held:
                found = {}
                for option, path in zip(folders, paths, strict=True):
                    found[option] = opened(Path(path).parent, os.O_PATH | os.O_DIRECTORY)
                    held.callback(os.close, found[option])
                owner.step()
                return real(*(Path(path).name for path in paths), *rest, **found)

        return stops

    def _weak_listdir(self, real: Callable[..., list[str]]) -> Callable[..., list[str]]:
        def listdir(path: Any) -> list[str]:
            owner = self.owners.get(threading.get_ident())
            before = set(real(path))
            if owner is None:
                return list(before)
            owner.step()
            after = set(real(path))
            maybe = sorted(before ^ after)
            found = before & after | {name for name in maybe if self.random.random() < 0.5}
            return sorted(found)

        return listdir


# Calls that change something, and the options by which each takes the folders of its paths.
_CALLS = {
    "rename": ("src_dir_fd", "dst_dir_fd"),
    "open": ("dir_fd",),
    "mkdir": ("dir_fd",),
    "rmdir": ("dir_fd",),
    "unlink": ("dir_fd",),
}


def _changes(name: str, args: tuple[Any, ...]) -> bool:
    return name != "open" or bool(args[1] & os.O_CREAT)


def _one_by_one(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    for item in items:
        work(item)


def marks(root: Path) -> set[str]:
    """Return the marks that are there."""
    files = (root / STORE / name for name in FILES)
    return {mark for file in files for mark in _text(file).split()}


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
