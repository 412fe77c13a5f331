"""Runs many histories, finds one that fails, and makes it small.

As a script it takes a seed or what `report` printed, and plays that history.
"""

import gc
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from time import monotonic

from choices import History
from plan import Letter, plan_of
from violation import Violation
from world import World

PROCESSES = min(2, len(os.sched_getaffinity(0)))
# How long a failing history is made smaller, in seconds.
SHRINK_S = 30.0
_BATCH = 50
_MOST_LINES = 150
_SMALL_NUMBERS = 64


@dataclass(frozen=True, slots=True)
class Ran:
    """What a history had in it, and whether it failed."""

    seed: int
    tiles: int
    arrays: int
    faults: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A history that breaks an invariant.

    Attributes
    ----------
    kind : str
        The same for all histories that fail alike.
    """

    history: History
    kind: str
    error: str
    log: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """How many messages are sent, tiles are in them, and events happen."""
        history = self.history
        return len(history.sends or ()), len(history.tiles or ()), len(history.events or ())


Alike = Callable[[History], Failure | None]


def run_all(seeds: Iterable[int]) -> list[Ran]:
    """Run the histories of seeds in several processes, up to the first that fails."""
    ran = []
    start = get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=start, initializer=_collect_less) as pool:
        for each in pool.map(run, seeds, chunksize=_BATCH):
            ran.append(each)
            if each.failed:
                pool.shutdown(cancel_futures=True)
                break
    return ran


def _collect_less() -> None:
    """Leave alone what is there already, and look for garbage less often: that takes time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def run(seed: int) -> Ran:
    """Run the history of a seed."""
    world = World(History(seed))
    try:
        world.run()
        failed = False
    except Exception:
        failed = True
    sent = {letter.number: letter for letter in world.sent}.values()
    tiles = sum(len(letter.tiles) for letter in sent)
    arrays = len({letter.array.key for letter in sent})
    return Ran(seed, tiles, arrays, len(world.faults), failed)


def first_failure(seeds: Iterable[int], kind: str | None = None) -> Failure | None:
    """Return the first history that fails, or that fails in one way, as it is."""
    for seed in seeds:
        failure = play(History(seed))
        if failure is not None and kind in (None, failure.kind):
            return failure
    return None


def play(history: History) -> Failure | None:
    """Run a history; return how it failed, if it did."""
    world = World(history)
    try:
        world.run()
    except Exception as error:
        return Failure(world.history, *_described(error), tuple(world.log))
    return None


def smallest(failure: Failure, seconds: float = SHRINK_S) -> Failure:
    """Return a history that fails alike and of which nothing can be left out.

    Messages, tiles and events are left out by halves, quarters and so on as long as the same kind
    of failure comes of it, and the events' numbers made smaller, until the time is up.
    """
    until = monotonic() + seconds

    def alike(history: History) -> Failure | None:
        found = play(history) if monotonic() < until else None
        return found if found is not None and found.kind == failure.kind else None

    small, before = failure, None
    while small.history != before:
        before = small.history
        for part in ("sends", "tiles", "events"):
            small = _without(small, part, alike)
        if small.history == before:
            small = _with_small_numbers(small, alike)
    return small


def report(failure: Failure) -> str:
    """Return what a person needs to know of a failure, and the command that repeats it."""
    history, log = failure.history, failure.log
    plan = plan_of(history.seed)
    given = plan.settings
    sends, tiles, events = failure.size
    letters = [x for x in plan.cut(history.tiles) if x and x.number in (history.sends or ())]
    arrays = {letter.array.key: letter.array.layout for letter in letters}
    lines = [
        f"seed {history.seed}: {failure.error}",
        f"sent: {sends} messages with {tiles} tiles; {events} events",
        f"prefetch {given.prefetch_count}, workers {given.workers}, open arrays "
        f"{given.max_open_arrays}, budget {given.memory_budget_bytes:d} bytes",
        *(
            f"array {key.path} in {key.store}: {x.axes} {x.shape}, blocks of {x.grid.block}"
            for key, x in arrays.items()
        ),
        *map(_letter, letters),
        *log[:_MOST_LINES],
        *[f"... and {len(log) - _MOST_LINES} lines more"] * (len(log) > _MOST_LINES),
        f"repeat it: {shlex.join([sys.executable, __file__, str(history)])}",
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Play a history and print how it fails; that of a seed is made small first."""
    (text,) = arguments
    history = History.parse(text)
    failure = play(history)
    if failure is None:
        print("holds")
        return 0
    print(report(failure if history.events is not None else smallest(failure)))
    return 1


def _letter(letter: Letter) -> str:
    tiles = (f"tile {x.number} at {x.box.start} to {x.box.stop}" for x in letter.tiles)
    return f"message {letter.number} for {letter.array.key.path}: {', '.join(tiles)}"


def _without(failure: Failure, part: str, alike: Alike) -> Failure:
    """Leave out of one part of a history whatever can be left out, the largest pieces first."""
    count = len(getattr(failure.history, part))
    while count:
        start = 0
        while start < len(items := getattr(failure.history, part)):
            less = {part: items[:start] + items[start + count :]}
            found = alike(replace(failure.history, **less))
            failure, start = (failure, start + count) if found is None else (found, start)
        count //= 2
    return failure


def _with_small_numbers(failure: Failure, alike: Alike) -> Failure:
    """Have each event choose the first of what there is, or nearly so."""
    i = 0
    while i < len(events := failure.history.events or ()):
        for number in range(min(_SMALL_NUMBERS, events[i].number)):
            event = events[i]._replace(number=number)
            changed = (*events[:i], event, *events[i + 1 :])
            found = alike(replace(failure.history, events=changed))
            if found is not None:
                failure = found
                break
        i += 1
    return failure


def _described(error: Exception) -> tuple[str, str]:
    if isinstance(error, Violation):
        return error.kind, str(error)
    place = traceback.extract_tb(error.__traceback__)[-1].name
    return f"{type(error).__name__} in {place}", "".join(
        traceback.format_exception(error, limit=-3)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
