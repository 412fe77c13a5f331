"""`consumer wait`: wait until an array is complete."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from consumer.blocks import ArrayKey
from consumer.commands.arguments import Parser, write_lines
from consumer.commands.parser import count, seconds
from consumer.ledger import Ledger
from consumer.ledger_files import read_present, signature

PURPOSE = """\
Wait until every voxel of an array is written.

exit code:
  0  it is complete
  1  the time was up before
  2  the arguments cannot be used
  3  tiles of it were parked, so it may never be: see the parking queue for the reasons. When they
     were sent again, give their number with --allow-parked"""

_COMPLETE, _TIME_OUT, _PARKED = 0, 1, 3


def main(
    arguments: Sequence[str],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Wait; return the exit code."""
    parser = Parser("wait", PURPOSE, "consumer wait plate7/d_output.zarr/g1/img --timeout 3600")
    parser.add_array()
    for flag, default, what in (
        ("--timeout", math.inf, "the longest wait, seconds; default: as long as it takes"),
        ("--interval", 1.0, "time between two looks, seconds; default: 1"),
    ):
        parser.add_argument(flag, type=seconds, default=default, metavar="SECONDS", help=what)
    parser.add_argument(
        "--allow-parked", type=count, default=0, metavar="TILES",
        help="go on waiting with so many tiles parked; default: 0",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    looks = Looks(parser.root(options), options.array, options.allow_parked)
    deadline = clock() + options.timeout
    while (code := looks.look()) is None:
        left = deadline - clock()
        if left <= 0:
            code = _TIME_OUT
            break
        sleep(min(options.interval, left))
    write_lines([f"{options.array.store}/{options.array.path}: {looks.said}"])
    return code


class Looks:
    """Looks at one array's ledger, which is read anew only where it has changed."""

    def __init__(self, root: Path, array: ArrayKey, allow_parked: int) -> None:
        self._root = root
        self._array = array
        self._allow_parked = allow_parked
        self._seen: object = None
        self._code: int | None = None
        self.said = "nothing is known of it yet"

    def look(self) -> int | None:
        """Return the exit code; None where it is to be waited."""
        now = signature(self._root, self._array)
        if now != self._seen:
            self._seen = now
            ledger, damages = read_present(self._root, self._array)
            for damage in damages:
                sys.stderr.write(f"consumer: {damage}\n")
            self._code = self._judge(ledger) if ledger else None
        return self._code

    def _judge(self, ledger: Ledger) -> int | None:
        if ledger.complete:
            self.said = "complete"
            return _COMPLETE
        parked = ledger.header.parked
        self.said = (
            f"{ledger.percent:.3f} % written, {ledger.missing_blocks} of {ledger.blocks} blocks "
            f"missing, parked tiles: {parked}"
        )
        return _PARKED if parked > self._allow_parked else None
