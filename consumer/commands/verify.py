"""`consumer verify`: read back what is written of an array."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consumer.arrays import ReadableArray, read_array
from consumer.blocks import ArrayKey
from consumer.commands.arguments import Parser, write_lines
from consumer.commands.display import plain, progress
from consumer.commands.missing import entries
from consumer.commands.parser import positive
from consumer.commit import ledger_folder
from consumer.errors import StorageFault, UnusableSettings
from consumer.ledger import Ledger
from consumer.ledger_files import read
from consumer.runs import joined
from consumer.verification import Checked, Damage, Verification, same_array

PURPOSE = """\
Read back what is written of an array, and report what is missing or cannot be decoded.

Every file that the ledger says is filled, wholly or partly, is read and decoded. For each that is
damaged there is a line that says what is wrong, and below it, as `consumer missing` prints them,
the boxes to be predicted again. Remove or restore a file that cannot be decoded before its boxes
are sent: what is left of it could not be merged with. What was never written is no damage. Bytes
that changed where no codec has a checksum are not seen.

Needs no broker, and may run beside consumers.

exit code:
  0  all that the ledger says is there
  1  something of it is damaged
  2  the arguments cannot be used, or there is no such array or no ledger of it"""


@dataclass(slots=True)
class _Sum:
    """What was read so far."""

    files: int = 0
    nbytes: int = 0
    damaged: int = 0

    def add(self, checked: Checked) -> None:
        """Count what became of a block."""
        self.files += checked.files
        self.nbytes += checked.nbytes
        self.damaged += len(checked.damages)


def main(arguments: Sequence[str]) -> int:
    """Read the array back; return the exit code."""
    parser = Parser("verify", PURPOSE, "consumer verify plate7/d_output.zarr/g1/img")
    parser.add_array()
    parser.add_argument(
        "--threads", type=positive, metavar="N",
        help="blocks that are read at a time, fewer where TILES_MEMORY_BUDGET_BYTES would not do; "
        "default: TILES_WORKERS, or the number of cores",
    )  # fmt: skip
    parser.add_argument(
        "--no-write-empty-chunks", action="store_true",
        help="chunks of nothing but the fill value are not stored, so that one which is absent is "
        "not missing; default: as TILES_WRITE_EMPTY_CHUNKS says",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="a JSON line for each damaged file, and one in the end"
    )
    options = parser.parse_args(arguments)
    settings, key = parser.settings(options), options.array
    array, ledger, damages = _opened(settings.output_root, key)
    empty_chunks = settings.write_empty_chunks and not options.no_write_empty_chunks
    verification = Verification(array, ledger, empty_chunks=empty_chunks)
    began, total = time.monotonic(), _Sum(damaged=len(damages))
    show = _Shown(settings.output_root, ledger, as_json=options.json)
    show.damages(damages)
    threads = options.threads or settings.workers
    blocks = verification.run(threads, settings.memory_budget_bytes)
    for checked in progress(blocks, "reading", verification.blocks):
        total.add(checked)
        show.damages(checked.damages)
    if not array.metadata.stands():
        raise UnusableSettings(f"{_name(key)} was removed or replaced meanwhile; verify it again")
    show.summary(key, total, time.monotonic() - began)
    return int(total.damaged > 0)


def _opened(root: Path, key: ArrayKey) -> tuple[ReadableArray, Ledger, list[Damage]]:
    """Return the array, its ledger, and what of the ledger is damaged."""
    # The ledger first: what it says is durable then.
    ledger, damages = read(root, key)
    array, name, folder = read_array(root, key), _name(key), ledger_folder(root, key.store)
    if array is None:
        said = f", though its ledger says that {ledger.percent:.3f} % are written" if ledger else ""
        raise UnusableSettings(
            f"there is no array {name} below {root}{said}; restore it, or publish its tiles again"
        )
    if ledger is None:
        said = "; ".join(damages) or f"{name} exists, but there is no ledger in {folder / key.path}"
        kind = StorageFault if damages else UnusableSettings
        raise kind(
            f"{said}: nothing tells what of it must be there; restore the ledger, or publish its "
            "tiles again, which makes a new one"
        )
    if not same_array(array, ledger):
        raise UnusableSettings(
            f"the ledger of {name} is of another array that had this name, and nothing tells what "
            "of this one must be there; restore the two together, or publish its tiles again"
        )
    what = "; what it held counts as missing: see consumer missing"
    return array, ledger, [Damage(folder / key.path, text + what, ()) for text in damages]


@dataclass(frozen=True, slots=True)
class _Shown:
    """Writes what was found to standard output."""

    root: Path
    ledger: Ledger
    as_json: bool

    def damages(self, damages: Sequence[Damage]) -> None:
        """Write the damaged files of a block, and the boxes that are lost."""
        if self.as_json:
            write_lines(json.dumps(self._record(damage)) for damage in damages)
            return
        write_lines(f"{plain(self._path(damage))}: {plain(damage.wrong)}" for damage in damages)
        lost = joined(box for damage in damages for box in damage.lost)
        write_lines(json.dumps(entry) for box in lost for entry in self._entries(box))

    def summary(self, key: ArrayKey, total: _Sum, seconds: float) -> None:
        """Write how much was read, and how much of the array there is."""
        percent, complete = self.ledger.percent, self.ledger.complete
        if self.as_json:
            record = {
                "store": key.store,
                "array": key.path,
                "complete": complete,
                "percent": round(percent, 3),
                "damaged": total.damaged,
                "files": total.files,
                "bytes": total.nbytes,
                "seconds": round(seconds, 3),
            }
            write_lines([json.dumps(record)])
            return
        damaged = f"damaged files: {total.damaged}" if total.damaged else "no damage"
        written = "complete" if complete else f"not complete, {percent:.3f} % written"
        read_back = f"{total.files} files, {total.nbytes} bytes, {seconds:.1f} s"
        write_lines([f"{_name(key)}: {damaged}; {written}; {read_back}"])
        if total.damaged:
            sys.stderr.write(
                "consumer: remove or restore what cannot be decoded, then publish the boxes above "
                "again; where consumers run with TILES_WRITE_EMPTY_CHUNKS=false, what is missing "
                "may be empty: see --no-write-empty-chunks\n"
            )

    def _record(self, damage: Damage) -> dict[str, Any]:
        tiles = [entry for box in damage.lost for entry in self._entries(box)]
        return {"file": self._path(damage), "wrong": damage.wrong, "tiles": tiles}

    def _entries(self, box: Any) -> Iterator[dict[str, Any]]:
        return entries(self.ledger.header, box)

    def _path(self, damage: Damage) -> str:
        return damage.file.relative_to(self.root).as_posix()


def _name(key: ArrayKey) -> str:
    return f"{key.store}/{key.path}"
