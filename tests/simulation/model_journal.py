"""The real journal of lone handlings, on a model of its folder that all processes see."""

from collections.abc import Sequence
from pathlib import Path

from consumer.errors import ConsumerError
from consumer.journal import Begun, Journal


class JournalFolder:
    """The folder: of each lone handling that was begun, the fingerprints."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[str, ...]] = {}


class ModelJournal(Journal):
    """A journal of one process.

    Attributes
    ----------
    written : set of str
        The entries that it has made.
    """

    def __init__(self, folder: JournalFolder, attempts: int) -> None:
        super().__init__(_NOWHERE, by="", attempts=attempts, file_mode=0, folder_mode=0)
        self._model = folder
        self.written: set[str] = set()
        self._failure: ConsumerError | None = None

    @property
    def left(self) -> set[str]:
        """Entries of this process that are still there."""
        return self.written & self._model.entries.keys()

    def fail(self, fingerprints: Sequence[str], failure: ConsumerError) -> Begun:
        """Begin, but fail when the entry stands."""
        self._failure = failure
        try:
            return self.begin(fingerprints)
        finally:
            self._failure = None

    def _remove_ended(self) -> None:
        for name in self._ended:
            self._model.entries.pop(name, None)
            self._entries.pop(name, None)
        self._ended.clear()

    def _read(self) -> None:
        self._entries = dict(self._model.entries)

    def _put(self, name: str, fingerprints: Sequence[str]) -> None:
        self._model.entries[name] = tuple(fingerprints)
        self.written.add(name)
        if self._failure is not None:
            raise self._failure


_NOWHERE = Path("/nowhere")
