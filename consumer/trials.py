"""What is tried out at the output root: in folders that no store key names.

What a kill leaves behind is removed by whoever tries something later, once it is a minute old.
"""

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from consumer.errors import StorageFault
from consumer.files import (
    despite_races,
    listed,
    remove_all,
    remove_empty,
    sync_folder,
    write_file,
)
from consumer.keys import TRIALS_FOLDER

# Older ones are of processes that were killed meanwhile; one that hangs so long is begun anew.
_AGE_S = 60.0


@contextlib.contextmanager
def workspace(root: Path) -> Iterator[Path]:
    """Have a folder below the root for as long as the block is entered.

    Raises
    ------
    OSError
        As the operating system gave it.
    """
    trials = root / TRIALS_FOLDER
    folder = despite_races(lambda: _made(trials))
    try:
        sweep((trials / name for name in listed(trials)), folder)
        yield folder
    finally:
        remove_all(folder)
        remove_empty(trials, root)


def sweep(paths: Iterable[Path], beside: Path) -> None:
    """Remove what is much older than what was made just now, on the same file system."""
    before = beside.stat().st_mtime - _AGE_S
    for path in paths:
        # Others sweep too.
        with contextlib.suppress(OSError):
            if path.lstat().st_mtime < before:
                remove_all(path)


def probe(root: Path) -> None:
    """Write, sync, rename and remove a file below the root; raises OSError where that fails."""
    despite_races(lambda: _probe(root))


class Root:
    """The output root, on the file system that it was on when it was first looked at.

    Where that is mounted no more, or anew, the path leads elsewhere, and what is written there is
    lost to whoever looks for it in the right place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._device: int | None = None

    def require(self) -> None:
        """See that the path leads where it led.

        Raises
        ------
        StorageFault
            Where it does not.
        OSError
            As the operating system gave it.
        """
        device = self.path.stat().st_dev
        if self._device is None:
            self._device = device
        if device != self._device:
            raise StorageFault(
                f"the output root {self.path} is on another file system than before (device "
                f"{device}, not {self._device}): mount it again, or restart the consumer where "
                "that is as it should be"
            )

    def probe(self) -> None:
        """See that a file can be written there; raises as `require` does."""
        self.require()
        probe(self.path)


def _probe(root: Path) -> None:
    with workspace(root) as folder:
        first, second = folder / "written", folder / "renamed"
        write_file(first, [b"probe"], 0o600)
        first.rename(second)
        sync_folder(folder)


def _made(trials: Path) -> Path:
    trials.parent.mkdir(exist_ok=True)
    trials.mkdir(exist_ok=True)
    made = trials / secrets.token_hex(8)
    made.mkdir()
    return made
