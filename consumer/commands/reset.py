"""`consumer reset`: forget what is written of an array."""

import random
import secrets
import time
from collections.abc import Callable, Sequence

from consumer.blocks import ArrayKey
from consumer.commands.arguments import Parser, write_lines
from consumer.commit import Commit
from consumer.errors import Fenced, UnusableSettings
from consumer.ledger import Files
from consumer.ledger_files import read, stored_files
from consumer.settings import Settings

PURPOSE = """\
Forget what is written of an array, its source and run, and that it was announced as complete.

The voxels stay. The array counts as empty, so that another run may fill it, and is announced again
when it is complete. Consumers at work take the store again and go on."""

_TRIES = 10
_FIRST_WAIT_S = 0.1


def main(arguments: Sequence[str], sleep: Callable[[float], None] = time.sleep) -> int:
    """Empty the ledger; return the exit code."""
    parser = Parser("reset", PURPOSE, "consumer reset plate7/d_output.zarr/g1/img")
    parser.add_array()
    options = parser.parse_args(arguments)
    settings, array = parser.settings(options), options.array
    said = _taking(lambda: reset(settings, array), sleep)
    write_lines([f"{array.store}/{array.path}: {said}"])
    return 0


def reset(settings: Settings, array: ArrayKey) -> str:
    """Take the store and empty the ledger; return what it said.

    Raises
    ------
    Fenced
        Where somebody else takes the store at the same time.
    """
    root = settings.output_root
    if not stored_files(root, array):
        raise UnusableSettings(f"nothing is known of {array.store}/{array.path}: it has no ledger")
    commit = Commit.take(
        root, array.store, file_mode=settings.file_mode, folder_mode=settings.folder_mode
    )
    try:
        ledger, damages = read(root, array)
        files: Files = {f"{array.path}/{name}": None for name in stored_files(root, array)}
        said = "; ".join(damages)
        if ledger:
            said = f"was {ledger.percent:.3f} % written, counts as empty now"
            ledger.restart(secrets.token_hex(8))
            files |= ledger.dirty()
        commit.commit({}, files)
    finally:
        commit.release()
    return said


def _taking(work: Callable[[], str], sleep: Callable[[float], None]) -> str:
    for number in range(_TRIES - 1):
        try:
            return work()
        except Fenced:
            # Random and growing, or two that take at once both go on losing.
            sleep(_FIRST_WAIT_S * random.uniform(1, 2.0**number))  # noqa: S311 - jitter
    return work()
