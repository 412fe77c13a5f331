"""Failpoints, for tests only: has a consumer pause, die or fail at a step that is named.

`TILES_FAILPOINTS` says `name=action[:argument][@probability][#times]`, as often as wanted, with `;`
between. The writer passes the steps of `consumer.commit`. The owning thread passes `place` before
it looks into a message, and `acknowledge` before it acknowledges one.

- `stop`: SIGSTOP to both processes of the consumer
- `kill`: SIGKILL to both
- `error:EIO`: the step fails with that error of the operating system; steps of a commit only
- `sleep:60`: the step comes so many seconds later

At `place`, `stop` and `kill` may name bytes, as in `place=kill:words`: it happens only with a
message whose body holds them. `#times` is how often it happens in one process at most.

`fence=off` lets late writers write: whoever takes a store ends nobody's epoch.
"""

import contextlib
import errno
import os
import random
import re
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from consumer.commit import Commit, Epochs, Step, no_step
from consumer.files import Folders, despite_races
from consumer.keys import STATE_FOLDER

# The steps of a commit, in the order of an owner's life.
STEPS = (
    "take.list",
    "take.mkdir",
    "take.remove",
    "remove.empty",
    "commit.make_folders",
    "commit.write",
    "commit.fsync",
    "commit.rename",
    "commit.remove",
    "commit.sync_folder",
    "ledger.rename",
    "ledger.remove",
    "ledger.sync_folder",
    "release",
)
PLACE, ACKNOWLEDGE = "place", "acknowledge"
FENCE_OFF = "fence=off"
_NAMES = (*STEPS, PLACE, ACKNOWLEDGE)
_SIGNALS = {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}
_FORM = re.compile(
    r"(?P<name>[a-z._]+)=(?P<action>stop|kill|error|sleep)(?::(?P<argument>[^@#]+))?"
    r"(?:@(?P<share>[0-9.]+))?(?:#(?P<times>[0-9]+))?"
)


@dataclass(slots=True)
class Failpoint:
    """What is to happen at a step; `left`: how often still."""

    name: str
    action: str
    argument: str = ""
    share: float = 1.0
    left: float = float("inf")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what a text says; raises ValueError with what would be right."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} must be name=action[:argument][@probability][#times]")
        name, action, argument = found["name"], found["action"], found["argument"] or ""
        if name not in _NAMES:
            raise ValueError(f"{text!r} names no step; the steps are {', '.join(_NAMES)}")
        _check_argument(name, action, argument)
        share = float(found["share"] or 1)
        if not 0 <= share <= 1:
            raise ValueError(f"the probability in {text!r} must be from 0 to 1")
        return cls(name, action, argument, share, float(found["times"] or "inf"))


def _check_argument(name: str, action: str, argument: str) -> None:
    if action == "error":
        if name not in STEPS:
            raise ValueError(f"{name} cannot fail; error is for the steps of a commit")
        if not isinstance(getattr(errno, argument, None), int):
            raise ValueError(f"error:{argument} names no error number; give one like error:EIO")
    elif action == "sleep":
        if re.fullmatch("[0-9]+(\\.[0-9]+)?", argument) is None:
            raise ValueError(f"sleep:{argument} must tell seconds, like sleep:60")
    elif argument and name != PLACE:
        raise ValueError(f"{name}={action} takes no argument (got {argument!r})")


class Failpoints:
    """The failpoints of one process. Safe in threads.

    Parameters
    ----------
    text : str
        As the setting has it; empty: nothing ever happens.
    other : callable
        Returns the process id of the consumer's other process.

    Raises
    ------
    ValueError
        With what would be right.
    """

    def __init__(self, text: str, other: Callable[[], int]) -> None:
        entries = [entry.strip() for entry in text.split(";") if entry.strip()]
        self._fenced = FENCE_OFF not in entries
        self._other = other
        self._lock = threading.Lock()
        self._points: defaultdict[str, list[Failpoint]] = defaultdict(list)
        for entry in entries:
            if entry != FENCE_OFF:
                point = Failpoint.parse(entry)
                self._points[point.name].append(point)

    @property
    def commit(self) -> type[Commit]:
        """How to take a store."""
        return Commit if self._fenced else Unfenced

    def reach(self, name: str, body: bytes = b"") -> None:
        """Let happen what is to happen at a step; `body`: of the message that is placed."""
        if name in self._points:
            for point in self._points[name]:
                if self._applies(point, body):
                    self._happen(point)

    def _applies(self, point: Failpoint, body: bytes) -> bool:
        if point.name == PLACE and point.argument.encode() not in body:
            return False
        with self._lock:
            if point.left < 1 or random.random() >= point.share:  # noqa: S311 - chance, no secret
                return False
            point.left -= 1
        return True

    def _happen(self, point: Failpoint) -> None:
        if point.action == "error":
            number = getattr(errno, point.argument)
            raise OSError(number, os.strerror(number), point.name)
        if point.action == "sleep":
            time.sleep(float(point.argument))
            return
        number = _SIGNALS[point.action]
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._other(), number)
        # To this thread: sent to the process, it would come a few steps later.
        signal.pthread_kill(threading.get_ident(), number)


class _NobodyIsFenced(Epochs):
    def take(self, store: str) -> Path:  # noqa: ARG002 - it cannot fail
        return despite_races(self.make)


class Unfenced(Commit):
    """Commits of a store that several own at once: what the fence is there to prevent."""

    @classmethod
    def take(
        cls,
        root: Path,
        store: str,
        *,
        file_mode: int,
        folder_mode: int,
        step: Step = no_step,
    ) -> Self:
        """Take a store from nobody."""
        folders = Folders(root, folder_mode)
        epochs = _NobodyIsFenced(root / STATE_FOLDER / store, folders, step)
        return cls(root, store, epochs, folders, file_mode)
