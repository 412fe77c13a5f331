"""Makes encoded files durable and visible below one store, each in one atomic step.

What is encoded, and whether a store may be written at all, is decided elsewhere. Always by path:
temporary file, fsync, rename over the target, fsync of the folder; folders that had to be made are
synced up to the output root.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from consumer.errors import UnsafePath
from consumer.keys import STATE_FOLDER

_RELEASES_AT_ONCE = 5


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

    def commit(self, objects: Mapping[str, bytes | None]) -> int:
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
        for folder in folders:
            self._make_folder(folder)
        _despite_releases(self._make_staging)
        contents = {key: content for key, content in objects.items() if content is not None}
        staged: dict[str, Path] = {}
        try:
            for key, content in contents.items():
                staged[key] = self._staging / secrets.token_hex(8)
                write_file(staged[key], content, self._file_mode)
            for key, temporary in staged.items():
                os.rename(temporary, targets[key])  # noqa: PTH104 - by path, as the protocol says
        except BaseException:
            for temporary in staged.values():
                with contextlib.suppress(OSError):
                    temporary.unlink()
            raise
        for key in objects.keys() - contents.keys():
            targets[key].unlink(missing_ok=True)
        for folder in folders:
            _sync_folder(folder)
        return sum(map(len, contents.values()))

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

    def _make_staging(self) -> None:
        try:
            self._make_folder(self._staging)
        except FileNotFoundError:
            self.forget_folders()
            raise

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and its parents, refuse links, and sync what was made up to the root."""
        if folder in self._synced:
            return
        if folder != self._root:
            self._make_folder(folder.parent)
            with contextlib.suppress(FileExistsError):
                folder.mkdir(self._folder_mode)
                folder.chmod(self._folder_mode)
            refuse_links([folder])
            _sync_folder(folder.parent)
        self._synced.add(folder)


def refuse_links(paths: Iterable[Path]) -> None:
    """Raise where any of the paths is a symbolic link."""
    for path in paths:
        if path.is_symlink():
            raise UnsafePath(f"{path} is a symbolic link; links below the output root are refused")


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Write a new file and sync it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def probe(root: Path) -> None:
    """Write, sync, rename and remove a file below the root; raises OSError where that fails."""
    _despite_releases(lambda: _probe(root / STATE_FOLDER))


def _probe(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    first, second = (folder / f"probe-{secrets.token_hex(8)}" for _ in range(2))
    try:
        write_file(first, b"probe", 0o600)
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
