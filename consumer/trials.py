"""What is tried out at the output root: in folders that no store key names.

What a kill leaves behind is removed by whoever tries something later, once it is a minute old.
"""

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

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
