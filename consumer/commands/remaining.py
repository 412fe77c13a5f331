"""What the ledger says is left to be published of an image that was published in part."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consumer.arrays import read_array
from consumer.blocks import ArrayKey, shown
from consumer.errors import UnusableSettings
from consumer.keys import check_array_path, check_store_key
from consumer.ledger import Ledger
from consumer.ledger_files import read
from consumer.verification import same_array

# What must be the same, or the consumer would park each tile.
_BOUND = ("axes", "shape", "source", "run")


def ledger_of(root: Path, entry: Mapping[str, Any]) -> Ledger | None:
    """Return the ledger of an array that messages name; None where nothing is known to be written.

    Parameters
    ----------
    entry : mapping
        What the messages say of the array, as `consumer.contract.ArrayEntry` describes.

    Raises
    ------
    UnusableSettings
        Where there is no such root, or what is written is of another image or run.
    """
    if not root.is_dir():
        raise UnusableSettings(f"--missing-from: there is no folder {root}")
    key = ArrayKey(check_store_key(entry["store"]), check_array_path(entry["array"]))
    ledger, damages = read(root, key)
    for damage in damages:
        _say(f"consumer: {damage}; what it held is published again")
    name = f"{key.store}/{key.path}"
    if ledger is None:
        _say(f"no ledger of {name} below {root}: publishing all")
        return None
    array = read_array(root, key)
    if array is None or not same_array(array, ledger):
        _say(f"{name} was removed or replaced since its ledger was written: publishing all")
        return None
    _check(name, ledger, entry)
    return ledger


def _check(name: str, ledger: Ledger, entry: Mapping[str, Any]) -> None:
    for what in _BOUND:
        given, stored = entry.get(what), getattr(ledger.header, what)
        given = tuple(given) if isinstance(given, list) else given
        if given and stored and given != stored:
            raise UnusableSettings(
                f"{what} {shown(given)} is not {shown(stored)}, which {name} has: give the image "
                "and the options that it was published with, or leave --missing-from out after "
                f"consumer reset {name}"
            )


def _say(line: str) -> None:
    sys.stderr.write(f"{' '.join(line.split())}\n")
