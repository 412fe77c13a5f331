"""Makes encoded files durable and visible below one store, each in one atomic step.

What is encoded, and whether a store may be written at all, is decided elsewhere. Always by path,
and grouped over all objects of a round: every temporary file written and synced, all renamed over
their targets, every folder synced once, with those above folders that had to be made, up to the
output root. Files are synced side by side: a disk that is asked for one at a time mostly waits.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from consumer.errors import UnsafePath
from consumer.keys import STATE_FOLDER

# The parts of one object, in order.
Parts = Sequence[bytes | memoryview]

_RELEASES_AT_ONCE = 5
_FILES_AT_ONCE = 8
# What one writev takes (IOV_MAX of Linux).
_PARTS_AT_ONCE = 1024

Item = TypeVar("Item")

_files = ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="file")


class Commit:
    """The commits of one store by one process.

    Safe in threads: what it remembers only ever grows and is looked up again where it is missing.
    """

    def __init__(self, root: Path, store: str, *, file_mode: int, folder_mode: int) -> None:
        self._root = root
        self._store = root / store
        self._staging = root / STATE_FOLDER / store / "staging" / secrets.token_hex(8)
        self._file_mode = file_mode
        self._folder_mode = folder_mode
        self._synced: set[Path] = set()

    def commit(self, objects: Mapping[str, Parts | None]) -> int:
        """Write every object durably under its key in the store; return the bytes written.

        What is None is removed.

        When it raises, any of the objects may have been replaced, and none may be relied on.

        Raises
        ------
        OSError
            As the operating system gave it.
        UnsafePath
            Where a symbolic link stands below the output root.
        """
        targets = {key: self._store / key for key in objects}
        folders = {target.parent for target in targets.values()}
        made = {above for folder in folders for above in self._make_folder(folder)}
        _despite_releases(lambda: made.update(self._make_folder(self._staging)))
        contents = {key: content for key, content in objects.items() if content is not None}
        staged = {key: self._staging / secrets.token_hex(8) for key in contents}
        try:
            _side_by_side(
                lambda key: write_file(staged[key], contents[key], self._file_mode), contents
            )
            for key, temporary in staged.items():
                os.rename(temporary, targets[key])  # noqa: PTH104 - by path, as the protocol says
        except BaseException:
            for temporary in staged.values():
                with contextlib.suppress(OSError):
                    temporary.unlink()
            raise
        for key in objects.keys() - contents.keys():
            targets[key].unlink(missing_ok=True)
        _side_by_side(_sync_folder, folders | {folder.parent for folder in made})
        self._synced |= made
        return sum(len(part) for content in contents.values() for part in content)

    def release(self) -> None:
        """Remove the staging folder; nothing may be committed any more."""
        with contextlib.suppress(FileNotFoundError):
            for left in self._staging.iterdir():
                left.unlink(missing_ok=True)
            self._staging.rmdir()
        with contextlib.suppress(OSError):
            _remove_empty(self._staging.parent, self._root)

    def forget_folders(self) -> None:
        """Look at every folder again: somebody may have removed the store."""
        self._synced = set()

    def _make_folder(self, folder: Path) -> Iterator[Path]:
        """Make a folder and its parents, refuse links, and yield those to be synced from above."""
        if folder == self._root or folder in self._synced:
            return
        yield from self._make_folder(folder.parent)
        try:
            folder.mkdir(self._folder_mode)
            folder.chmod(self._folder_mode)
        except FileExistsError:
            refuse_links([folder])
        except FileNotFoundError:
            self.forget_folders()
            raise
        yield folder


def _side_by_side(work: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Do the work for every item, and return or raise only when none of it runs any more."""
    items = list(items)
    if len(items) == 1:
        work(items[0])
        return
    running = [_files.submit(work, item) for item in items]
    wait(running)
    for ended in running:
        ended.result()


def refuse_links(paths: Iterable[Path]) -> None:
    """Raise where any of the paths is a symbolic link."""
    for path in paths:
        if path.is_symlink():
            raise UnsafePath(f"{path} is a symbolic link; links below the output root are refused")


def write_file(path: Path, content: Parts, mode: int) -> None:
    """Write a new file and sync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        for first in range(0, len(content), _PARTS_AT_ONCE):
            _write_all(descriptor, content[first : first + _PARTS_AT_ONCE])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, parts: Parts) -> None:
    written = os.writev(descriptor, parts)
    for part in parts:
        # The system may take less than all: what is left is then written part by part.
        left = memoryview(part)[min(written, len(part)) :]
        written = max(0, written - len(part))
        while left:
            left = left[os.write(descriptor, left) :]


def probe(root: Path) -> None:
    """Write, sync, rename and remove a file below the root; raises OSError where that fails."""
    _despite_releases(lambda: _probe(root / STATE_FOLDER))


def _probe(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    first, second = (folder / f"probe-{secrets.token_hex(8)}" for _ in range(2))
    try:
        write_file(first, [b"probe"], 0o600)
        first.rename(second)
        _sync_folder(folder)
    finally:
        for path in (first, second):
            with contextlib.suppress(OSError):
                path.unlink()


def _despite_releases(work: Callable[[], None]) -> None:
    """Do it again where the release of a store has just removed a folder that was empty."""
    for _ in range(_RELEASES_AT_ONCE):
        with contextlib.suppress(FileNotFoundError):
            return work()
    return work()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                return
            raise
        folder = folder.parent
