"""Makes encoded files durable and visible below one store, each in one step, for its one owner.

What is encoded, and when a store is taken or let go, is decided elsewhere. Always by path, and
grouped over all objects of a round: every temporary file written and synced, all renamed over
their targets, every folder synced once, with those above folders that had to be made, up to the
output root; then the same for the ledger. Files are synced side by side: a disk that is asked for
one at a time mostly waits.

The fence
---------
No broker can promise that there is one writer, so the store refuses all but the latest. An epoch,
one tenure of a store, is a folder `.tiles/<store key>/epochs/<n>-<random>`, a name that never comes
again. A file becomes visible by a rename out of it and in no other way, and disappears by a rename
into it and in no other way.

*One owner.* A taker makes its folder, one above the highest, and looks again. Where it sees one
that orders above its own, it gives up. Otherwise it removes every lower one: renames it to
`fenced/`, unlinks its files, `rmdir`. The store is its own once one look finds its folder the only
one in `epochs/` and nothing in `fenced/`; only then may anything be read. Of any two that take, the
later to make its folder sees the other's or finds it removed, and all order by (number, name): so
the lower one gives up, is removed, or came when the higher one was over. `fenced/` is looked at
after `epochs/`, so that what is renamed meanwhile is found in one of them.

*No late writer.* A fenced owner, wherever it was stopped, has only these calls left:

- Open, rename out, rename in: the path leads nowhere, ENOENT. A call that had found the folder
  before it was renamed goes on inside the kernel, and succeeds while the folder is not yet empty:
  then the taker was still at work and had read nothing, as if all that had been before the fence.
  A file that it leaves so makes `rmdir` fail, and the taker looks again. In a folder that was
  removed the kernel makes no entry, whoever holds it.
- Write or sync a temporary file: it has no name any more. Sync a folder: that is no change.
- Make folders in the store: they stay empty.
- Remove lower epochs, if it was stopped while it took: those that it saw while its own stood.

So what is left by a crash is nobody's: in either folder it goes at the next take. Two that take at
once may both give up, time and again, unless they wait between: that is the caller's, and the wait
should be random and grow.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

from consumer.errors import Fenced, ParkError
from consumer.files import (
    Folders,
    despite_races,
    listed,
    remove_all,
    remove_empty,
    side_by_side,
    suppressed,
    sync_folder,
    write_file,
)
from consumer.keys import STATE_FOLDER

# The parts of one object, in order.
Parts = Sequence[bytes | memoryview]
# Called with the name of each step before it is done, possibly in several threads.
Step = Callable[[str], None]

LEDGER_FOLDER = "ledger"
_EPOCHS_FOLDER = "epochs"
_FENCED_FOLDER = "fenced"
# So often is looked whether all earlier epochs are gone.
_LOOKS = 100
# A network file system says ESTALE of what somebody else removed.
_GONE = {errno.ENOENT, errno.ESTALE}
_NOTHING: Mapping[str, Parts | None] = MappingProxyType({})


def no_step(_name: str) -> None:
    """Do nothing."""


class Commit:
    """The commits of one store in one epoch, from `take` to `release`; of no use once fenced.

    Whoever was fenced takes the store anew and reads everything anew. Safe in threads.
    """

    def __init__(
        self, root: Path, store: str, epochs: "Epochs", folders: Folders, file_mode: int
    ) -> None:
        self._name = store
        self._store = root / store
        self._ledger = ledger_folder(root, store)
        self._epochs = epochs
        self._epoch = epochs.take(store)
        self._folders = folders
        self._file_mode = file_mode
        self._step = epochs.step

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
        """Take a store, which need not exist yet: of no earlier epoch anything appears any more.

        Before anything is committed, a round trip to the broker must show that it still delivers
        to this consumer, and has not long gone over to another. Until then there may be reading:
        what was read is as good as the epoch.

        Parameters
        ----------
        step : callable
            Called with the name of each step before it is done, possibly in several threads: for
            tests that stop, end or fail there.

        Raises
        ------
        Fenced
            Where another takes it at the same time. Take again after a random wait that grows.
        OSError
            As the operating system gave it.
        UnsafePath
            Where a symbolic link stands below the output root.
        """
        folders = Folders(root, folder_mode)
        epochs = Epochs(root / STATE_FOLDER / store, folders, step)
        return cls(root, store, epochs, folders, file_mode)

    @property
    def epoch(self) -> str:
        """The epoch's name."""
        return self._epoch.name

    def check(self) -> None:
        """Raise Fenced where the epoch is over."""
        try:
            self._epoch.stat()
        except OSError as error:
            if error.errno in _GONE:
                raise Fenced(f"{self._name}: the epoch {self.epoch} is over") from None
            raise

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """Raise Fenced instead of what speaks against a message where the epoch is over.

        Then it was found while another had the store, who may have been writing just that.
        """
        try:
            yield
        except (ParkError, FileNotFoundError):
            self.check()
            raise

    def commit(
        self,
        data: Mapping[str, Parts | None],
        ledger: Mapping[str, Parts | None] = _NOTHING,
        *,
        standing: Collection[str] = (),
    ) -> int:
        """Write every object durably under its key, data before ledger; return the bytes written.

        What is None is removed. When it raises, any of the objects may have been replaced, and
        none may be relied on; but nothing of the ledger was, unless all data is durable.

        Parameters
        ----------
        data
            By key in the store.
        ledger
            By path in the store's ledger folder.
        standing
            Arrays, by path in the store, that must exist: they are not made, nor what is above.

        Raises
        ------
        Fenced
            Where the epoch is over.
        OSError
            As the operating system gave it; FileNotFoundError where a folder was removed.
        UnsafePath
            Where a symbolic link stands below the output root.
        """
        try:
            return self._commit(
                {self._store / key: parts for key, parts in data.items()},
                {self._ledger / key: parts for key, parts in ledger.items()},
                [self._store / path for path in standing],
            )
        except OSError as error:
            if error.errno in _GONE:
                self.check()
            raise

    def release(self) -> None:
        """End the epoch; nothing can be committed any more."""
        self._step("release")
        self._epochs.release(self._epoch)

    def forget_folders(self) -> None:
        """Look at every folder again: somebody may have removed the store."""
        self._folders.synced = set()

    def _commit(
        self,
        data: Mapping[Path, Parts | None],
        ledger: Mapping[Path, Parts | None],
        standing: Collection[Path],
    ) -> int:
        self._step("commit.make_folders")
        made, made_for_ledger = self._folders.above(data, standing), self._folders.above(ledger)
        objects = [*data.items(), *ledger.items()]
        contents = {target: parts for target, parts in objects if parts is not None}
        staged = {target: self._new_name() for target in contents}
        try:
            side_by_side(lambda target: self._write(staged[target], contents[target]), contents)
            self._put(data, staged, made, "commit")
            self._put(ledger, staged, made_for_ledger, "ledger")
        except BaseException:
            for temporary in staged.values():
                with contextlib.suppress(OSError):
                    temporary.unlink()
            raise
        return sum(len(part) for parts in contents.values() for part in parts)

    def _new_name(self) -> Path:
        return self._epoch / secrets.token_hex(8)

    def _write(self, temporary: Path, content: Parts) -> None:
        self._step("commit.write")
        write_file(temporary, content, self._file_mode, lambda: self._step("commit.fsync"))

    def _put(
        self, targets: Iterable[Path], staged: Mapping[Path, Path], made: set[Path], phase: str
    ) -> None:
        """Make files visible, and that durable."""
        for target in targets:
            if target in staged:
                self._step(f"{phase}.rename")
                os.rename(staged[target], target)  # noqa: PTH104 - by path, as the protocol says
            else:
                self._step(f"{phase}.remove")
                self._remove(target)

        def sync(folder: Path) -> None:
            self._step(f"{phase}.sync_folder")
            sync_folder(folder)

        side_by_side(sync, {target.parent for target in targets} | {each.parent for each in made})
        self._folders.synced.update(made)

    def _remove(self, target: Path) -> None:
        """Remove a file by way of the epoch's folder: what is fenced cannot remove either."""
        away = self._new_name()
        try:
            if stat.S_ISDIR(target.lstat().st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            os.rename(target, away)  # noqa: PTH104 - as above
        except FileNotFoundError:
            self.check()
        away.unlink(missing_ok=True)


class Epochs:
    """The epochs of one store."""

    def __init__(self, state: Path, folders: Folders, step: Step) -> None:
        self.step = step
        self._live = state / _EPOCHS_FOLDER
        self._fenced = state / _FENCED_FOLDER
        self._folders = folders

    def take(self, store: str) -> Path:
        """Make an epoch and end all others; return its folder."""
        own = despite_races(self.make)
        try:
            for _ in range(_LOOKS):
                lower = self._lower(own)
                if lower is None:
                    raise Fenced(f"{store}: another consumer takes it at the same time")
                if not lower:
                    return own
                for path in lower:
                    self.step("take.remove")
                    self._remove(path)
            what = "files of an earlier epoch cannot be removed"
            raise OSError(errno.ENOTEMPTY, what, str(self._fenced))
        except BaseException:
            with contextlib.suppress(OSError):
                self._remove(own)
            raise

    def release(self, own: Path) -> None:
        """End an epoch."""
        self._remove(own)
        for folder in (self._fenced, self._live):
            remove_empty(folder, self._folders.root)

    def make(self) -> Path:
        """Make an epoch above all others; return its folder."""
        self._folders.make(self._live)
        self.step("take.list")
        number = max((_order(name)[0] for name in listed(self._live)), default=0) + 1
        own = self._live / f"{number}-{secrets.token_hex(8)}"
        self.step("take.mkdir")
        self._folders.make_one(own)
        return own

    def _lower(self, own: Path) -> list[Path] | None:
        """Return what is to be removed; None where the epoch is not the highest, or is over."""
        self.step("take.list")
        live = listed(self._live)
        fenced = listed(self._fenced)
        if own.name not in live or max(live, key=_order) != own.name:
            return None
        lower = [self._live / name for name in live if name != own.name]
        return lower + [self._fenced / name for name in fenced]

    def _remove(self, path: Path) -> None:
        """Remove a folder of either kind, as far as nobody adds to it meanwhile."""
        away = self._fenced / path.name
        if path != away:
            # A namesake that is there already goes first.
            with suppressed(errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                self._folders.make(self._fenced)
                path.rename(away)
        self.step("remove.empty")
        remove_all(away)


def _order(name: str) -> tuple[int, str]:
    number = name.partition("-")[0]
    return int(number) if number.isdecimal() else 0, name


def ledger_folder(root: Path, store: str) -> Path:
    """Return where the ledgers of a store's arrays lie."""
    return root / STATE_FOLDER / store / LEDGER_FOLDER
