"""What ends a history: an invariant that does not hold."""


class Violation(AssertionError):
    """An invariant does not hold; `kind` is the same for all histories that break it so."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
