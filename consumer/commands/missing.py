"""`consumer missing`: what of an array is not written yet, so that it can be predicted again."""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from consumer.commands.arguments import Parser, write_lines
from consumer.coverage import Box
from consumer.errors import UnusableSettings
from consumer.ledger_files import read_present
from consumer.ledger_format import Header

PURPOSE = """\
List what of an array is not written yet, a JSON line for each box.

A line is an entry of `tiles` in a message, without its tensor: sample_idx, channel, stitch_coords
and crop_size, in voxels, (Z)YX. Sent with "fill" it would be filled with one value. Where neither
the array nor a message told the axes, it has start and stop along each axis instead."""


def main(arguments: Sequence[str]) -> int:
    """List the boxes; return the exit code."""
    parser = Parser("missing", PURPOSE, "consumer missing plate7/d_output.zarr/g1/img")
    parser.add_array()
    options = parser.parse_args(arguments)
    array = options.array
    ledger, damages = read_present(parser.root(options), array)
    if ledger is None:
        raise UnusableSettings(
            "; ".join(damages) or f"nothing is known of {array.store}/{array.path}: no ledger"
        )
    for damage in damages:
        sys.stderr.write(f"consumer: {damage}\n")
    header = ledger.header
    write_lines(json.dumps(entry) for box in ledger.missing() for entry in entries(header, box))
    return 0


def entries(header: Header, box: Box) -> Iterator[dict[str, Any]]:
    """Yield what tiles would have to say to fill a box of the array."""
    if not header.axes:
        yield {"start": list(box.start), "stop": list(box.stop)}
        return
    space = sum(axis in "ZYX" for axis in header.axes)
    where = {"stitch_coords": list(box.start[-space:]), "crop_size": list(box.shape[-space:])}
    leading = header.axes[:-space]
    times = dict(zip(header.axes, header.shape, strict=True)).get("T", 1)
    for place in itertools.product(*map(range, box.start[:-space], box.stop[:-space])):
        at = dict(zip(leading, place, strict=True))
        entry: dict[str, Any] = {}
        if "S" in at or "T" in at:
            entry["sample_idx"] = at.get("S", 0) * times + at.get("T", 0)
        if "C" in at:
            entry["channel"] = at["C"]
        yield entry | where
