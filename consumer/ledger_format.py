"""How a ledger is written: a header and segments, as JSON that people can read, with checksums.

Pure. Each file begins with the CRC-32C (Castagnoli) of all that follows the first key. Numbers of
blocks are in C order over the array's blocks; ranges end before their second number; boxes are
`[start, stop]` in voxels from the block's first. File names begin with a dot, as no segment of an
array's path does: so the ledger of `a` and that of `a/b` never meet.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import google_crc32c

from consumer.coverage import Box
from consumer.placement import Grid, Layout

FORMAT = 1
SEGMENT_BLOCKS = 4096
HEADER_NAME = ".ledger.json"

# What is known of a block: nothing, all, or the JSON of the boxes that are filled.
NOTHING = b""
WHOLE = b"whole"

_json = json.JSONEncoder(separators=(",", ":")).encode
_SEGMENT_NAME = re.compile(r"\.blocks-(\d{1,18})\.json")
_CHECKSUM = re.compile(rb'\{"crc32c":"([0-9a-f]{8})",')


# The attribute that tells an array from one that was removed and made anew under its name.
LEDGER_ID = "tiles_ledger_id"


class Damaged(ValueError):
    """A file is not what was written."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the ledger knows of an array, apart from its blocks.

    Attributes
    ----------
    id : str
        Of the array, as in its attributes; empty where it has none.
    axes : str
        Empty where neither array nor messages tell.
    shape, file, block : tuple of int
        In voxels; see `consumer.placement.Grid`.
    ledger : str
        Of this ledger: segments that name another are of an earlier one, and count as empty.
    tiles : int
        Tiles that were written, duplicates included.
    written_ms : int or None
        When the last of them was, in Unix milliseconds.
    parked : int
        Tiles that were parked; one may be counted twice.
    announced : bool
        Whether it was announced that the array is complete.
    replaced : tuple of str
        Earlier runs, the latest last.
    """

    id: str
    axes: str
    shape: tuple[int, ...]
    file: tuple[int, ...]
    block: tuple[int, ...]
    ledger: str
    source: str | None = None
    run: str | None = None
    tiles: int = 0
    written_ms: int | None = None
    parked: int = 0
    announced: bool = False
    replaced: tuple[str, ...] = ()

    @classmethod
    def of(cls, layout: Layout, array_id: str, axes: str, ledger: str) -> "Header":
        """Return the header of an array that nothing is known of yet."""
        grid = layout.grid
        return cls(array_id, layout.axes or axes, grid.shape, grid.file, grid.block, ledger)

    @property
    def grid(self) -> Grid:
        """How the array is cut into blocks."""
        return Grid(self.shape, self.file, self.block)

    def same_array(self, other: "Header") -> bool:
        """Whether both are of one array, and not of two that had one name after the other."""
        return (self.id, self.grid) == (other.id, other.grid)


@dataclass(slots=True)
class Segment:
    """Up to 4,096 blocks: a bit for each that is whole, and the boxes of those partly filled.

    Blocks are counted from the segment's first.
    """

    whole: int = 0
    partly: dict[int, bytes] = field(default_factory=dict)

    def get(self, block: int) -> bytes:
        """Return what is known of a block."""
        return WHOLE if self.whole >> block & 1 else self.partly.get(block, NOTHING)

    def put(self, block: int, known: bytes) -> None:
        """Replace what is known of a block."""
        self.whole &= ~(1 << block)
        self.partly.pop(block, None)
        if known == WHOLE:
            self.whole |= 1 << block
        elif known != NOTHING:
            self.partly[block] = known

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield the runs of whole blocks: the first, and the one after the last."""
        bits = bin(self.whole)[:1:-1]
        for run in re.finditer("1+", bits):
            yield run.span()


def segment_name(number: int) -> str:
    """Return the file name of a segment."""
    return f".blocks-{number:05d}.json"


def segment_number(name: str) -> int | None:
    """Return the number of the segment that a file name is of."""
    found = _SEGMENT_NAME.fullmatch(name)
    return int(found[1]) if found else None


def text_of(boxes: Iterable[Box]) -> bytes:
    """Return the JSON of boxes."""
    return _json(list(boxes)).encode()


def boxes_of(known: bytes) -> list[Box]:
    """Return the boxes of a block that is partly filled."""
    return [Box(tuple(start), tuple(stop)) for start, stop in json.loads(known or b"[]")]


def encode_header(header: Header) -> bytes:
    """Return the header's file."""
    lines = (f'\n"{key}":{_json(value)}' for key, value in asdict(header).items())
    return _checksummed(f'\n"format":{FORMAT},{",".join(lines)}}}\n'.encode())


def decode_header(content: bytes) -> Header:
    """Return the header.

    Raises
    ------
    Damaged
        Where it is not what was written.
    """
    try:
        found = _document(content)
        for name in ("shape", "file", "block"):
            found[name] = tuple(map(int, found[name]))
        found["replaced"] = tuple(found.get("replaced", ()))
        return Header(**found)
    except (TypeError, ValueError, KeyError) as error:
        raise Damaged(str(error)) from None


def encode_segment(segment: Segment, number: int, ledger: str) -> bytes:
    """Return the file of the segment of that number."""
    first = number * SEGMENT_BLOCKS
    whole = _json([[first + start, first + stop] for start, stop in segment.runs()]).encode()
    partly = b",".join(
        b'\n"%d":%b' % (first + block, boxes) for block, boxes in sorted(segment.partly.items())
    )
    head = f'\n"format":{FORMAT},\n"ledger":{_json(ledger)},\n"whole":'.encode()
    return _checksummed(b'%b%b,\n"partly":{%b}}\n' % (head, whole, partly))


def decode_segment(content: bytes, number: int, ledger: str) -> Segment | None:
    """Return the segment; None where it is another ledger's.

    Raises
    ------
    Damaged
        Where it is not what was written.
    """
    try:
        found = _document(content)
        mine = found["ledger"] == ledger
        return _segment(found, number * SEGMENT_BLOCKS) if mine else None
    except (TypeError, ValueError, KeyError) as error:
        raise Damaged(str(error)) from None


def _segment(found: dict[str, Any], first: int) -> Segment:
    segment = Segment()
    for start, stop in found["whole"]:
        if not first <= start < stop <= first + SEGMENT_BLOCKS:
            raise Damaged(f"blocks {start} to {stop} are not of this segment")
        segment.whole |= ((1 << stop - start) - 1) << start - first
    for block, boxes in found["partly"].items():
        segment.put(int(block) - first, text_of(boxes))
    return segment


def _checksummed(rest: bytes) -> bytes:
    return b'{"crc32c":"%08x",' % google_crc32c.value(rest) + rest


def _document(content: bytes) -> dict[str, Any]:
    head = _CHECKSUM.match(content)
    if head is None:
        raise Damaged("it does not begin with a checksum")
    if int(head[1], 16) != google_crc32c.value(content[head.end() :]):
        raise Damaged("its checksum is not that of its content")
    document: dict[str, Any] = json.loads(content)
    del document["crc32c"]
    if (version := document.pop("format")) != FORMAT:
        raise Damaged(f"its format is {version}, not {FORMAT}")
    return document
