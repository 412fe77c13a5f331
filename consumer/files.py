"""Writes files, makes and removes folders below the output root: durably, and through no link.

What of it is to be seen by readers, and when, is `consumer.commit`'s business.
"""

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from consumer.errors import UnsafePath

_RACES = 5
_FILES_AT_ONCE = 8
# What one writev takes (IOV_MAX of Linux).
_PARTS_AT_ONCE = 1024

Item = TypeVar("Item")

_files = ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="file")


class Folders:
    """Makes folders below the root, with their mode; refuses links.

    Safe in threads: what it remembers is looked up again where it is missing.

    Attributes
    ----------
    synced : set of Path
        Those that need not be looked at again: they stand, and are durable.
    """

    def __init__(self, root: Path, mode: int) -> None:
        self.root = root
        self.synced: set[Path] = set()
        self._mode = mode

    def above(self, files: Iterable[Path], standing: Collection[Path] = ()) -> set[Path]:
        """Make the folders that files go to; return those to be synced from above.

        What stands, and what is above it, is not made: FileNotFoundError where it is missing.
        """
        required = {above for path in standing for above in (path, *path.parents)}
        folders = {file.parent for file in files}
        return {each for folder in folders for each in self._made(folder, required)}

    def make(self, folder: Path) -> None:
        """Make a folder and those above it where they are missing."""
        for _ in self._made(folder, ()):
            pass

    def make_one(self, folder: Path) -> None:
        """Make a folder."""
        folder.mkdir(self._mode)
        folder.chmod(self._mode)

    def _made(self, folder: Path, required: Collection[Path]) -> Iterator[Path]:
        if folder == self.root or folder in self.synced:
            return
        yield from self._made(folder.parent, required)
        try:
            if folder in required:
                folder.lstat()
                refuse_links([folder])
            else:
                self.make_one(folder)
        except FileExistsError:
            refuse_links([folder])
        except FileNotFoundError:
            self.synced = set()
            raise
        yield folder


def side_by_side(work: Callable[[Item], None], items: Collection[Item]) -> None:
    """Do the work for every item, and return or raise only when none of it runs any more.

    After an error nothing more is begun.
    """
    if len(items) < 2:
        for item in items:
            work(item)
        return
    left = deque(items)

    def work_off() -> None:
        try:
            while item := _taken(left):
                work(*item)
        except BaseException:
            left.clear()
            raise

    running = [_files.submit(work_off) for _ in range(min(len(left), _FILES_AT_ONCE))]
    wait(running)
    for ended in running:
        ended.result()


def _taken(left: deque[Item]) -> tuple[Item] | tuple[()]:
    """Take an item, while other threads do the same."""
    try:
        return (left.popleft(),)
    except IndexError:
        return ()


def refuse_links(paths: Iterable[Path]) -> None:
    """Raise where any of the paths is a symbolic link."""
    for path in paths:
        if path.is_symlink():
            raise UnsafePath(f"{path} is a symbolic link; links below the output root are refused")


def write_file(
    path: Path,
    content: Sequence[bytes | memoryview],
    mode: int,
    before_sync: Callable[[], None] = lambda: None,
) -> None:
    """Write a new file and sync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        for first in range(0, len(content), _PARTS_AT_ONCE):
            _write_all(descriptor, content[first : first + _PARTS_AT_ONCE])
        before_sync()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, parts: Sequence[bytes | memoryview]) -> None:
    written = os.writev(descriptor, parts)
    for part in parts:
        # The system may take less than all: what is left is then written part by part.
        left = memoryview(part)[min(written, len(part)) :]
        written = max(0, written - len(part))
        while left:
            left = left[os.write(descriptor, left) :]


def sync_folder(folder: Path) -> None:
    """Make durable which names a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def listed(folder: Path) -> list[str]:
    """Return the names in a folder; none where there is no folder."""
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are what is asked for
    except FileNotFoundError:
        return []


def remove_all(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, as far as nobody adds to it meanwhile.

    Others may remove the same.
    """
    with suppressed(errno.ENOENT, errno.ESTALE, errno.ENOTEMPTY, errno.EEXIST):
        if not stat.S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return
        for name in listed(path):
            remove_all(path / name)
        path.rmdir()


def remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and those above it, up to the first that is not empty, or the root."""
    with suppressed(errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
        while folder != root:
            folder.rmdir()
            folder = folder.parent


def despite_races(work: Callable[[], Item]) -> Item:
    """Do it again where somebody has just removed an empty folder, or taken the name."""
    for _ in range(_RACES):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            return work()
    return work()


@contextlib.contextmanager
def suppressed(*numbers: int) -> Iterator[None]:
    """Pass over errors of the operating system with these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
