"""How much memory is held, in bytes by kind, against the one limit that there is."""

from dataclasses import dataclass, field

KINDS = ("bodies", "blocks", "cached", "encoding", "scratch")


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
    def free(self) -> int:
        """Bytes below the limit; negative where it is passed."""
        return self.limit - sum(self.held.values()) + self.held["scratch"]
