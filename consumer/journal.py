"""Which messages were handled alone when a consumer ended, by their fingerprints.

One file for each lone handling that was begun, in `.tiles/lone/` below the output root, so that
any replica goes on where one was killed. It is durable before the handling begins and removed when
that has ended in order; what remains was cut short, and says so for a day.

From a removal nothing is lost but a little time, so it is not synced.
"""

import contextlib
import json
import logging
import re
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from consumer.files import Folders, despite_races, listed, sync_folder, write_file
from consumer.keys import STATE_FOLDER

LONE_FOLDER = "lone"
# Messages handled together at most, and into how many parts those are cut that were cut short: a
# thousand end as one message at the second cut.
MOST_TOGETHER = 1024
PARTS = 32
EXPIRY_S = 24 * 3600.0
# What is not whole by then was left by a kill. Who writes for longer begins anew.
_PART_S = 2.0
_NAME = re.compile(r"[0-9a-f]{16}\.(json|part)")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Begun:
    """What became of the wish to handle messages alone.

    Attributes
    ----------
    count : int
        How many of them, the first ones, may be handled now, with nothing else. 0: the first has
        ended the consumer too often, it must not be handled at all.
    entry : str
        What ends it.
    cut : bool
        Whether an earlier handling of one of them was cut short.
    """

    count: int
    entry: str
    cut: bool


def together(fingerprints: Sequence[str], cut_short: Iterable[Sequence[str]], attempts: int) -> int:
    """Return how many of the first messages are handled together; 0: the first is to be parked.

    Of what was cut short, any message may be to blame: it comes again with few others, at last
    alone. Only what was cut short alone is counted.

    Parameters
    ----------
    cut_short : iterable of sequence of str
        The fingerprints of each handling that was cut short.
    attempts : int
        How often a message may be cut short alone.
    """
    most: dict[str, int] = {}
    alone: Counter[str] = Counter()
    for messages in cut_short:
        if len(messages) == 1:
            alone.update(messages)
        for each in messages:
            most[each] = min(most.get(each, MOST_TOGETHER), max(1, len(messages) // PARTS))
    if alone[fingerprints[0]] >= attempts:
        return 0
    limit = MOST_TOGETHER
    for count, fingerprint in enumerate(fingerprints):
        limit = min(limit, most.get(fingerprint, MOST_TOGETHER))
        if count >= limit:
            return count
    return len(fingerprints)


class Journal:
    """The journal below one output root, as one process writes and reads it; not safe in threads.

    Parameters
    ----------
    by : str
        Name of this replica, for whoever reads the files.
    attempts : int
        As in `together`.
    clock : callable
        Seconds since the epoch.
    require : callable
        Raises where the root is not the one that it was.
    """

    def __init__(
        self,
        root: Path,
        *,
        by: str,
        attempts: int,
        file_mode: int,
        folder_mode: int,
        clock: Callable[[], float] = time.time,
        require: Callable[[], None] = lambda: None,
    ) -> None:
        self._require = require
        self._folder = root / STATE_FOLDER / LONE_FOLDER
        self._folders = Folders(root, folder_mode)
        self._by = by
        self._attempts = attempts
        self._file_mode = file_mode
        self._clock = clock
        # By name of the file: a file is never changed.
        self._entries: dict[str, tuple[str, ...]] = {}
        # Ended, but perhaps not removed yet.
        self._ended: set[str] = set()

    def begin(self, fingerprints: Sequence[str]) -> Begun:
        """Note durably that the first of some messages are handled from now on, and nothing else.

        Raises
        ------
        OSError
            As the operating system gave it; nothing is begun then.
        UnsafePath
            Where a symbolic link stands below the output root.
        StorageFault
            Where the root is not the one that it was.
        """
        self._require()
        self._remove_ended()
        self._read()
        cut_short = [each for name, each in self._entries.items() if name not in self._ended]
        count = together(fingerprints, cut_short, self._attempts)
        concerned = set(fingerprints[: max(count, 1)])
        cut = any(not concerned.isdisjoint(each) for each in cut_short)
        if not count:
            return Begun(0, "", cut)
        return Begun(count, despite_races(lambda: self._write(fingerprints[:count])), cut)

    def end(self, entry: str, settled: Collection[str]) -> None:
        """Note that a handling has ended in order, and which messages will not come again.

        Parameters
        ----------
        entry : str
            Of `Begun`; empty where none was begun.
        """
        if entry:
            self._ended.add(entry)
        settled = set(settled)
        self._ended |= {
            name for name, each in self._entries.items() if len(each) == 1 and each[0] in settled
        }
        self._remove_ended()

    def sweep(self) -> None:
        """Remove what is too old to say anything."""
        self._read()

    def _remove_ended(self) -> None:
        for name in list(self._ended):
            # Where it cannot be removed it is not counted, and is tried again.
            with contextlib.suppress(OSError):
                (self._folder / name).unlink(missing_ok=True)
                self._ended.discard(name)
                self._entries.pop(name, None)

    def _read(self) -> None:
        known, self._entries = self._entries, {}
        for name in listed(self._folder):
            with contextlib.suppress(FileNotFoundError):
                if _NAME.fullmatch(name) and self._is_fresh(self._folder / name):
                    found = known.get(name) or self._fingerprints(self._folder / name)
                    self._entries |= {name: found} if found else {}

    def _is_fresh(self, path: Path) -> bool:
        """Whether a file of the journal is not too old; if it is, remove it."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return False
        whole = path.suffix == ".json"
        if self._clock() - status.st_mtime <= (EXPIRY_S if whole else _PART_S):
            return whole
        path.unlink()
        return False

    def _fingerprints(self, path: Path) -> tuple[str, ...]:
        try:
            found = tuple(json.loads(path.read_bytes())["messages"])
        except (ValueError, TypeError, KeyError) as error:
            log.warning(
                "a file of the journal is damaged; it counts as missing",
                extra={"path": str(path), "error": repr(error)},
            )
            return ()
        return found if all(isinstance(each, str) for each in found) else ()

    def _write(self, fingerprints: Sequence[str]) -> str:
        name = f"{secrets.token_hex(8)}.json"
        try:
            self._put(name, fingerprints)
        except BaseException:
            # It may stand all the same, though nothing is begun.
            self._ended.add(name)
            self._remove_ended()
            raise
        self._entries[name] = tuple(fingerprints)
        return name

    def _put(self, name: str, fingerprints: Sequence[str]) -> None:
        said = {"begun_ms": int(self._clock() * 1000), "by": self._by, "messages": fingerprints}
        path = self._folder / name
        part = path.with_suffix(".part")
        made = self._folders.above([path])
        try:
            write_file(part, [json.dumps(said).encode()], self._file_mode)
            part.rename(path)
        except FileNotFoundError:
            # Somebody else may remove the folder while it is empty.
            self._folders.synced = set()
            raise
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        for folder in {self._folder} | {each.parent for each in made}:
            sync_folder(folder)
        self._folders.synced.update(made)
