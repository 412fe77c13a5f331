"""How much memory is held, in bytes by kind, against the one limit that there is.

A quarter of the limit is for bodies, so that whatever arrives, blocks can still be written, and a
sixteenth for what is known of stored blocks; the rest is for blocks and what writing them takes.
"""

from dataclasses import dataclass, field

_OF_BLOCKS = ("blocks", "cached", "spare", "encoding")
KINDS = ("bodies", *_OF_BLOCKS, "coverage", "ledgers", "scratch")
BODY_SHARE = 4
# Each of coverage and ledgers.
KNOWN_SHARE = 32
# A block is held up to four times while it is written: its buffer, and beside it the stored base,
# the encoded chunks, and the shard that joins them.
ENCODING_FACTOR = 3


def most_bodies(limit: int, scratch: int, message: int) -> int:
    """Return how many messages of so many bytes there is room for, in memory and scratch file.

    In memory room for one more is kept, for what passes through.
    """
    return (limit // BODY_SHARE - message) // message + scratch // message


def max_block_bytes(limit: int) -> int:
    """Return the largest block that can be written within a limit, in bytes."""
    return _for_blocks(limit) // (1 + ENCODING_FACTOR)


def least_limit(block: int) -> int:
    """Return the least limit within which a block of so many bytes can be written."""
    return -((1 + ENCODING_FACTOR) * block * 16 // -11)


def _for_blocks(limit: int) -> int:
    # What the other shares leave: 1 - 1/4 - 2/32.
    return limit * 11 // 16


@dataclass(slots=True)
class Budget:
    """The memory budget. `scratch` is on disk: it is counted, but not against the limit."""

    limit: int
    held: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def take(self, kind: str, nbytes: int) -> None:
        """Count bytes as held."""
        self.held[kind] += nbytes

    def note(self, kind: str, nbytes: int) -> None:
        """Take note of how many bytes are held."""
        self.held[kind] = nbytes

    def give(self, kind: str, nbytes: int) -> None:
        """Count bytes as released."""
        self.held[kind] -= nbytes
        assert self.held[kind] >= 0, f"more {kind} released than held"

    @property
    def free_for_bodies(self) -> int:
        """Bytes of the bodies' share that are not held."""
        return self.limit // BODY_SHARE - self.held["bodies"]

    @property
    def free_for_blocks(self) -> int:
        """Bytes of the rest that are not held; negative where a lone write takes more."""
        held = sum(self.held[kind] for kind in _OF_BLOCKS)
        return _for_blocks(self.limit) - held

    @property
    def free_for_coverage(self) -> int:
        """Bytes of the share of what is known of stored blocks that are not held."""
        return self.limit // KNOWN_SHARE - self.held["coverage"]
