"""How much memory is held, in bytes by kind, against the one limit that there is.

A quarter of the limit is for bodies, so that whatever arrives, blocks can still be written; the
rest is for blocks and what writing them takes.
"""

from dataclasses import dataclass, field

KINDS = ("bodies", "blocks", "cached", "spare", "encoding", "scratch")
BODY_SHARE = 4
# A block is held up to four times while it is written: its buffer, and beside it the stored base,
# the encoded chunks, and the shard that joins them.
ENCODING_FACTOR = 3


def max_block_bytes(limit: int) -> int:
    """Return the largest block that can be written within a limit, in bytes."""
    return (limit - limit // BODY_SHARE) // (1 + ENCODING_FACTOR)


def least_limit(block: int) -> int:
    """Return the least limit within which a block of so many bytes can be written."""
    return BODY_SHARE * ((1 + ENCODING_FACTOR) * block - 1) // (BODY_SHARE - 1) + 1


@dataclass(slots=True)
class Budget:
    """The memory budget. `scratch` is on disk: it is counted, but not against the limit."""

    limit: int
    held: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def take(self, kind: str, nbytes: int) -> None:
        """Count bytes as held."""
        self.held[kind] += nbytes

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
        held = sum(self.held[kind] for kind in ("blocks", "cached", "spare", "encoding"))
        return self.limit - self.limit // BODY_SHARE - held
