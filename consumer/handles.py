"""Which arrays are open, and which deliveries wait for one to be opened.

Owned by the owning thread; opening itself is done in the writer process, one array of a store at a
time.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from consumer.blocks import ArrayKey, StoredArray
from consumer.errors import RunConflict, SourceConflict
from consumer.events import ArrayCompleted
from consumer.inbox import Held
from consumer.message import Outline


@dataclass(eq=False, slots=True)
class Handle:
    """An array, open or about to be.

    Attributes
    ----------
    outline : Outline
        What the first message that it took said of it: where it is gone, it is made anew so.
    array : StoredArray or None
        None while it is not open.
    channel : int
        The channel that last delivered to it.
    complete : bool
        Whether it was complete when last heard of.
    before : StoredArray or None
        What it was, where the store is gone and it must be opened again.
    in_the_way_since : float or None
        Since when what is left of it keeps it from being made anew.
    replaced : tuple of str
        Runs that filled it before the present one.
    ledger : str or None
        The id of its ledger.
    renewing : bool
        Whether another run begins as soon as what there is of this one is written.
    """

    key: ArrayKey
    outline: Outline
    array: StoredArray | None = None
    before: StoredArray | None = None
    in_the_way_since: float | None = None
    waiting: deque[Held] = field(default_factory=deque)
    taken: bool = False
    source: str | None = None
    run: str | None = None
    replaced: tuple[str, ...] = ()
    ledger: str | None = None
    renewing: bool = False
    complete: bool = False
    channel: int = 0

    @property
    def opening(self) -> Outline:
        """The message to open it for: the first that waits, or the first that there was."""
        first = self.waiting[0].outline if self.waiting else None
        return first or self.outline

    @property
    def completion(self) -> ArrayCompleted:
        """The event that it is complete."""
        return ArrayCompleted(
            store=self.key.store,
            array=self.key.path,
            source=self.source,
            run=self.run,
            ledger=self.ledger,
        )

    def claim(self, outline: Outline) -> None:
        """Bind the array to the source and run of a message that it takes, or refuse a second one.

        Raises
        ------
        SourceConflict, RunConflict
            With both values.
        """
        entry, where = outline.entry, f"{self.key.store}/{self.key.path}"
        if entry.source and self.source and entry.source != self.source:
            raise SourceConflict(
                f"{where}: source {entry.source!r} is not {self.source!r}, which fills this array"
            )
        if entry.run and self.run and entry.run != self.run:
            raise RunConflict(
                f"{where}: run {entry.run!r} was replaced by {self.run!r}"
                if entry.run in self.replaced
                else f"{where}: run {entry.run!r} is not {self.run!r}, which fills it; "
                "`consumer reset` lets another begin"
            )
        self.source = self.source or entry.source
        self.run = self.run or entry.run
        if not self.taken:
            self.outline, self.taken = outline, True


def key_of(outline: Outline) -> ArrayKey:
    """Return the array that a message is of."""
    return ArrayKey(outline.entry.store, outline.entry.array)


class Handles:
    """Handles by array, least recently used first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._handles: OrderedDict[ArrayKey, Handle] = OrderedDict()
        self._closed: dict[ArrayKey, Handle] = {}
        self._renewing: dict[ArrayKey, Handle] = {}
        self._opening: set[str] = set()

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._handles.values())

    @property
    def open_count(self) -> int:
        """Arrays that are open."""
        return sum(handle.array is not None for handle in self)

    @property
    def waited_for(self) -> set[str]:
        """Stores of which an array is waited for."""
        return {handle.key.store for handle in self if handle.waiting}

    @property
    def opening(self) -> bool:
        """Whether an array is being opened."""
        return bool(self._opening)

    def of(self, outline: Outline) -> Handle:
        """Return the handle of a message's array, as the one used last."""
        key = key_of(outline)
        if key not in self._handles:
            self._handles[key] = self._closed[key] = Handle(key, outline)
        self._handles.move_to_end(key)
        return self._handles[key]

    def opened(self, key: ArrayKey) -> StoredArray | None:
        """Return the open array, if it is."""
        handle = self._handles.get(key)
        return handle.array if handle else None

    def to_open(self, wanted: Callable[[Handle], bool]) -> Iterator[Handle]:
        """Yield handles that are wanted open, of stores in which none is being opened."""
        for handle in list(self._closed.values()):
            if handle.key.store not in self._opening and wanted(handle):
                self._opening.add(handle.key.store)
                yield handle

    def is_opening(self, store: str) -> bool:
        """Whether an array of the store is being opened."""
        return store in self._opening

    def note_opened(self, handle: Handle, array: StoredArray | None) -> StoredArray | None:
        """Take note that an opening ended, well or not; return what the array was before."""
        self._opening.discard(handle.key.store)
        closed = self._closed.pop(handle.key, None)
        if array is None:
            if closed is not None:
                # Behind others of its store, which have their turn.
                self._closed[handle.key] = closed
            return None
        before, handle.before, handle.array = handle.before, None, array
        handle.in_the_way_since = None
        return before

    def drop(self, handle: Handle) -> None:
        """Forget a handle."""
        del self._handles[handle.key]
        self._closed.pop(handle.key, None)
        self._renewing.pop(handle.key, None)

    def find(self, key: ArrayKey) -> Handle | None:
        """Return the handle of an array, if it has one."""
        return self._handles.get(key)

    def get(self, key: ArrayKey) -> Handle:
        """Return the handle of an array that has one."""
        return self._handles[key]

    def bound(self, key: ArrayKey) -> tuple[str | None, str | None]:
        """Return the source and the run that an array is bound to."""
        handle = self._handles[key]
        return handle.source, handle.run

    def reopen(self, store: str) -> list[ArrayKey]:
        """Have every array of a store that is gone opened again; return their keys."""
        arrays = [handle for handle in self if handle.key.store == store]
        for handle in arrays:
            self.close(handle)
        return [handle.key for handle in arrays]

    def close(self, handle: Handle) -> None:
        """Have an array opened again, once it is wanted."""
        handle.before, handle.array = handle.array or handle.before, None
        handle.renewing = False
        self._renewing.pop(handle.key, None)
        self._closed[handle.key] = handle

    def renew(self, handle: Handle) -> None:
        """Have tiles of another run wait until the array is opened anew for them."""
        handle.renewing = True
        self._renewing[handle.key] = handle

    def renewed(self, in_use: Callable[[ArrayKey], bool]) -> Iterator[Handle]:
        """Yield those to be opened anew for another run, closed."""
        for handle in [each for each in self._renewing.values() if not in_use(each.key)]:
            self.close(handle)
            yield handle

    def surplus(self, in_use: Callable[[ArrayKey], bool]) -> Iterator[Handle]:
        """Yield those to drop: of complete arrays, and above the limit the least recently used."""
        for handle in list(self):
            if len(self._handles) <= self._most and not handle.complete:
                continue
            idle = not handle.waiting and not self.is_opening(handle.key.store)
            if idle and not in_use(handle.key):
                yield handle
