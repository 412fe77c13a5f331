"""Who writes which store, seen from the files: each replica makes them with modes of its own."""

import contextlib
import itertools
import os
import signal
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos import fleet
from chaos.oracle import STATE_FOLDER
from harness import ConsumerProcess
from scale.figures import Tenure, Write, interleaved, late_writes
from scale.stage import Stage, kill

_FOLDER_MODES = (0o755, 0o750, 0o711, 0o705)
_FILE_MODES = (0o644, 0o640, 0o600, 0o604)
_POLL_S = 0.02
_SLACK_S = 0.2
_BALANCED_S = 60.0


class Files:
    """Looks at epochs and chunk files of some stores again and again, in a thread."""

    def __init__(self, root: Path, stores: list[str]) -> None:
        self._root, self._stores = root, stores
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._since: dict[tuple[str, str], tuple[float, float]] = {}
        self._looked: dict[str, float] = defaultdict(float)
        self._holders: dict[tuple[str, str], int] = {}
        self._writes: dict[str, set[Write]] = defaultdict(set)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def tenures(self, store: str) -> list[Tenure]:
        """Return the epochs of a store that were seen."""
        return [
            Tenure(int(name.partition("-")[0]), _replica(self._holders[key], _FOLDER_MODES), *times)
            for key, times in list(self._since.items())
            for at, name in [key]
            if at == store
        ]

    def writes(self, store: str) -> set[Write]:
        """Return the files of a store that were seen, each with when it was written."""
        return set(self._writes[store])

    def _run(self) -> None:
        while not self._ended.wait(_POLL_S):
            self.look()

    def look(self) -> None:
        """Look once at everything."""
        for store in self._stores:
            self._look_at_epochs(store)
            self._look_at_files(store)

    def _look_at_epochs(self, store: str) -> None:
        before, self._looked[store] = self._looked[store], time.time()
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._root / STATE_FOLDER / store / "epochs"):
                with contextlib.suppress(FileNotFoundError):
                    self._holders[store, entry.name] = stat.S_IMODE(entry.stat().st_mode)
                    self._since.setdefault((store, entry.name), (time.time(), before))

    def _look_at_files(self, store: str) -> None:
        for path in (self._root / store).glob("g/i/c/*/*/*"):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                replica = _replica(stat.S_IMODE(found.st_mode), _FILE_MODES)
                # A rename keeps the time of writing, and changes that of the inode.
                self._writes[store] |= {
                    Write(replica, at) for at in (found.st_mtime, found.st_ctime)
                }


def _replica(mode: int, modes: tuple[int, ...]) -> str:
    return f"r{modes.index(mode)}" if mode in modes else f"mode {mode:o}"


def concurrent(stage: Stage) -> None:
    """Have replicas write stores of several partitions, and some killed or paused meanwhile."""
    images = stage.prepare(len(_FILE_MODES))
    for number, replica in enumerate(stage.replicas):
        replica.environment["TILES_FOLDER_MODE"] = f"{_FOLDER_MODES[number]:04o}"
        replica.environment["TILES_FILE_MODE"] = f"{_FILE_MODES[number]:04o}"
    stores = [image.store for of_one in images for image in of_one]
    watch, files = stage.watch(), stage.enter(Files(stage.root, stores))
    stage.scale_to(len(stage.replicas))
    stage.wait_balanced("4 replicas", _BALANCED_S)
    with stage.producing(images):
        stage.wait_all_delivered(watch, time.time(), "4 replicas")
        for victim in stage.replicas[1:3]:
            with _killed(stage, victim):
                stage.wait_all_delivered(watch, time.time(), f"without {fleet.name(victim)}")
        for victim in stage.chance.choices(stage.replicas, k=2 if stage.options.quick else 6):
            with _paused(stage, victim):
                stage.wait_all_delivered(watch, time.time(), f"while {fleet.name(victim)} hangs")
        stage.wait_all_delivered(watch, time.time(), "at the end")
    stage.finish(watch)
    _judge(stage, files, [[image.store for image in of_one] for of_one in images])


@contextlib.contextmanager
def _killed(stage: Stage, victim: ConsumerProcess) -> Iterator[None]:
    """Kill a replica, and start it again when the block is left."""
    kill(victim)
    yield
    victim.start(ready=False)
    stage.wait_ready(victim)
    stage.wait_balanced("after a kill", _BALANCED_S)


@contextlib.contextmanager
def _paused(stage: Stage, victim: ConsumerProcess) -> Iterator[None]:
    """Pause a replica in the midst of what it writes, until it wakes when the block is left."""
    family = fleet.processes(victim)
    fleet.signal_all(family, signal.SIGSTOP)
    try:
        yield
    finally:
        fleet.signal_all(family, signal.SIGCONT)
    stage.wait_ready(victim)
    stage.wait_balanced("after a pause", _BALANCED_S)


def _judge(stage: Stage, files: Files, stores: list[list[str]]) -> None:
    """Count stores written at the same time by two replicas, and writes that came too late."""
    pairs = handed = late = 0
    for some, others in itertools.combinations(stores, 2):
        pairs += interleaved(files.writes(some[0]), files.writes(others[0]))
    for store in itertools.chain.from_iterable(stores):
        tenures = files.tenures(store)
        handed += len({each.replica for each in tenures}) > 1
        wrong = late_writes(tenures, files.writes(store), _SLACK_S)
        late += len(wrong)
        stage.problems += [f"{store}: {write} within {tenure}" for write, tenure in wrong[:2]]
    stage.figures |= {"pairs_at_once": pairs, "stores_handed_over": handed, "late_writes": late}
    if not pairs:
        stage.problem("no two stores were written at the same time by different replicas")
    if not handed:
        stage.problem("no store went from one replica to another")
