"""The real writer, whose work goes on step by step: on model stores instead of files.

Which store is taken, allowed and given up, which blocks go into a round and what becomes of them is
`consumer.writer`'s; what its worker threads do is modelled here, after `consumer.rounds` and
`consumer.commit`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy.typing as npt
from model_journal import JournalFolder, ModelJournal
from model_store import Epoch, ModelArray, ModelStore, Steps
from violation import Violation

from consumer import rounds
from consumer.blocks import ArrayKey
from consumer.coverage import Box, Coverage
from consumer.encoder import touched_files
from consumer.errors import ConsumerError
from consumer.journal import Begun
from consumer.ledger import LIMIT_BYTES, Ledger
from consumer.ledger_format import Header
from consumer.openings import Partly
from consumer.requests import Answer, Open, Remark, Setup, WriteBlock, Written
from consumer.rounds import Encoded, WritableArray
from consumer.workers import DISK, JOURNAL
from consumer.writer import Writer

# What a block puts into each file, by the file's box in the array.
Objects = Mapping[Box, Sequence[npt.NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Stored:
    """An array of a store that was taken; in the place of `consumer.arrays.OpenArray`."""

    model: ModelArray
    store: Any

    @property
    def key(self) -> ArrayKey:
        """The array's."""
        return self.model.key

    @property
    def layout(self) -> Any:
        """The array's."""
        return self.model.layout

    @property
    def metadata(self) -> Any:
        """Metadata that stand."""
        return SimpleNamespace(stands=lambda: True)


@dataclass(eq=False, slots=True)
class Job:
    """Work in a worker thread.

    Attributes
    ----------
    kind : str
        What fails when it does: open, read, write, journal; or it is an end, and never fails.
    longest : int
        About as many steps as it takes.
    outcome : str
        For the log.
    """

    kind: str
    name: str
    steps: Steps[Any]
    done: Callable[[Any, ConsumerError | None], None]
    longest: int
    hangs_until: float = 0.0
    outcome: str = ", not yet done"

    @property
    def label(self) -> int:
        """A number that the same work has in another history too."""
        return crc32(self.name.encode())


class ModelWriter(Writer):
    """A writer of one process.

    Parameters
    ----------
    name : str
        The process's.
    moments : iterator
        Gives each moment a number.
    lost_channel : callable
        Gives the number of the process's channel where the broker has lost it, else None.
    answer : callable
        Takes each answer.
    """

    def __init__(
        self,
        name: str,
        stores: Mapping[str, ModelStore],
        arrays: Mapping[ArrayKey, ModelArray],
        journal: JournalFolder,
        lone_attempts: int,
        memory: Any,
        moments: Iterator[int],
        lost_channel: Callable[[], int | None],
        answer: Callable[[Answer], None],
    ) -> None:
        super().__init__(_SETUP, memory, answer)
        self.name = name
        self.jobs: list[Job] = []
        self.stalled = False
        self.journal = self._journal = ModelJournal(journal, lone_attempts)
        # Of the journal one thing is done after the other.
        self._journal_jobs: deque[Job] = deque()
        workers: Any = SimpleNamespace(run=self._run)
        self._workers = workers
        self._model_stores = stores
        self._model_arrays = arrays
        self._moments = moments
        self._lost_channel = lost_channel

    def advance(self, job: Job, most: int = 0) -> bool:
        """Let a job do so many steps, or all; return whether it has ended."""
        steps = 0
        try:
            while not most or steps < most:
                next(job.steps)
                steps += 1
        except StopIteration as ended:
            self._end(job, ended.value, None)
        except ConsumerError as error:
            self._end(job, None, error)
        else:
            return False
        return True

    def fail(self, job: Job, error: ConsumerError, lasting: bool) -> None:
        """Have a step of a job fail, or, lasting, all that it tries from there on."""
        try:
            job.steps.throw(error)
            while lasting:
                job.steps.throw(error)
        except StopIteration as ended:
            self._end(job, ended.value, None)
        except ConsumerError as raised:
            self._end(job, None, raised)

    def _end(self, job: Job, result: Any, error: ConsumerError | None) -> None:
        self.jobs.remove(job)
        if job in self._journal_jobs:
            self._journal_jobs.popleft()
            self.jobs += list(self._journal_jobs)[:1]
        job.outcome = f", fails: {error}" if error else ""
        job.done(result, error)

    # -- instead of threads ---------------------------------------------------------------------

    def _run(self, work: Callable[[], Any], done: Any, *, lane: str = DISK) -> None:
        bound = work if isinstance(work, partial) else partial(work)
        kind, name, steps, longest = self._modelled(bound)
        job = Job(kind, f"{self.name}{name}", steps, done, longest)
        if lane == JOURNAL:
            self._journal_jobs.append(job)
        if lane != JOURNAL or len(self._journal_jobs) == 1:
            self.jobs.append(job)

    def _modelled(self, work: "partial[Any]") -> tuple[str, str, Steps[Any], int]:
        """Return what work is done: its kind and name, its steps and about how many they are."""
        match work.func.__name__, work.args:
            case "begin", (fingerprints,):
                return "journal", "the journal's begin", self._begin_steps(fingerprints), 4
            case "release" | "end", _:
                return "end", *_ending(work), 2
            case "_take", (key,):
                return "open", f"taking {key}", self._take_steps(key), 8
            case "_opened", (store, known, request):
                name = f"opening {request.outline.entry.array}"
                return "open", name, self._open_steps(store, known, request), 2
            case "encode", (array, request, buffer):
                name = f"encoding {request.array.path} {request.block}"
                kind = "read" if request.merge else "write"
                return kind, name, self._encode_steps(array, request, buffer), 2
            case "_round", (blocks,):
                what = "committing" if any(block.objects for block in blocks) else "remarking on"
                name = f"{what} {blocks[0].array.open.store.key}"
                longest = 4 + sum(len(block.objects) for block in blocks)
                return "write", name, self._round_steps(blocks), longest
            case name, _:
                raise AssertionError(f"the model knows nothing of {name}")

    def _take_steps(self, key: str) -> Steps[Any]:
        epoch = yield from self._model_stores[key].take()
        epoch.lost_channel = self._lost_channel()
        return SimpleNamespace(key=key, commit=epoch)

    def _open_steps(self, store: Any, known: WritableArray | None, request: Open) -> Steps[Any]:
        yield
        store.commit.check()
        if known is not None:
            return known, None
        outline = request.outline
        model = self._model_arrays[ArrayKey(store.key, outline.entry.array)]
        fresh = Header.of(model.layout, "id", "", f"{next(self._moments)}")
        ledger = model.load_ledger(fresh)
        partly: Partly = dict(ledger.partly())
        opened: Any = Stored(model, store)
        return WritableArray(opened, ledger), partly

    def _encode_steps(
        self, array: WritableArray, write: WriteBlock, buffer: npt.NDArray[Any]
    ) -> Steps[Encoded]:
        model: ModelArray = array.open.model  # type: ignore[attr-defined]  # see `Stored`
        if write.merge:
            yield
            for hole in Coverage(write.filled).missing(Box.of_shape(write.box.shape)):
                buffer[hole.slices] = model.stored[write.box.slices][hole.slices]
        yield
        objects: Any = self.objects(array, write, buffer)
        return Encoded(array, write, objects)

    def objects(self, array: WritableArray, write: WriteBlock, buffer: npt.NDArray[Any]) -> Objects:
        """Return what is put into each file that a filled box touches."""
        grid = array.open.layout.grid
        if grid.file == grid.block:
            return {write.box: [buffer.copy()]}
        files = touched_files(grid, write.box, write.filled)
        return {box: [buffer[box.shifted(write.box.start).slices].copy()] for box in files}

    def _begin_steps(self, fingerprints: Sequence[str]) -> Steps[Begun]:
        yield
        try:
            yield
        except ConsumerError as error:
            return self.journal.fail(fingerprints, error)
        return self.journal.begin(fingerprints)

    # -- rounds ---------------------------------------------------------------------------------

    def _round_steps(self, blocks: Sequence[Encoded]) -> Steps[Any]:
        """Commit blocks as `Writer._round` does."""
        waiting = [blocks]
        outcomes: list[tuple[Written | None, ConsumerError | None]] = []
        while waiting:
            following = waiting.pop(0)
            try:
                written = yield from self._commit_steps(following)
                outcomes += [(each, None) for each in written]
            except ConsumerError as error:
                if len(following) > 1:
                    waiting += [[block] for block in following]
                else:
                    outcomes.append((None, error))
        return outcomes

    def _commit_steps(self, blocks: Sequence[Encoded]) -> Steps[list[Written]]:
        """Commit blocks as `consumer.rounds.commit` does."""
        arrays = list({block.array.open.key: block.array for block in blocks}.values())
        epoch: Any = arrays[0].open.store.commit
        try:
            ledgers = rounds._ledger_files(blocks, arrays)
            yield
            # The temporary files.
            epoch.check()
            for phase in self.phases(self._put(epoch, blocks), self._put_ledgers(epoch, ledgers)):
                yield from phase
        except BaseException:
            for array in arrays:
                array.ledger.undo()
            raise
        for array in arrays:
            array.ledger.saved()
        return [_written(block.array.ledger) for block in blocks]

    def phases(self, data: Steps[None], ledgers: Steps[None]) -> Iterable[Steps[None]]:
        """Return the phases of a commit in their order."""
        return data, ledgers

    def _put(self, epoch: Epoch, blocks: Sequence[Encoded]) -> Steps[None]:
        for block in blocks:
            if isinstance(block.request, Remark):
                continue
            model: ModelArray = block.array.open.model  # type: ignore[attr-defined]
            objects: Any = block.objects
            for box, (values,) in objects.items():
                yield
                self._check(epoch)
                model.put(box, values)
            if objects:
                written = model.written[block.request.box.slices]
                for box in block.request.filled:
                    written[box.slices] = next(self._moments)

    def _check(self, epoch: Epoch) -> None:
        """Check what is about to appear."""
        epoch.rename()
        if epoch.lost_channel is not None and epoch.lost_channel == self._lost_channel():
            raise Violation("committed before the broker answered", epoch.store.key)

    def _put_ledgers(self, epoch: Epoch, ledgers: Mapping[str, Any]) -> Steps[None]:
        for path, parts in ledgers.items():
            yield
            self._check(epoch)
            array, _, name = path.rpartition("/")
            (content,) = parts
            self._model_arrays[ArrayKey(epoch.store.key, array)].put_ledger(name, content)


_SETUP = Setup(
    Path("/nowhere"), 1, True, 0o644, 0o755, LIMIT_BYTES, "INFO", "text", 0, "", 0, "", 1
)


def _written(ledger: Ledger) -> Written:
    return Written(0, 0, 0.0, ledger.filled_voxels, rounds.unannounced(ledger))


def _ending(work: "partial[Any]") -> tuple[str, Steps[None]]:
    """Return the name and steps of work that ends something."""
    if work.func.__name__ == "release":
        return "letting go", work()
    return "the journal's end", _step(work)


def _step(work: Callable[[], None]) -> Steps[None]:
    yield
    work()
