"""The output root's file system: which it is, and whether it does what the fence needs of it.

`consumer run` refuses a root that fails here, `consumer doctor` shows all of it. What the fence
needs is argued in `consumer.commit`. From one machine cannot be tried whether another sees the
same at the same time, so for network file systems the kind and its mount options count.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from consumer.errors import StorageFault, UnsafePath, UnusableRoot
from consumer.files import listed, refuse_links, sync_folder, write_file
from consumer.findings import Finding, Verdict
from consumer.keys import STATE_FOLDER, TRIALS_FOLDER
from consumer.trials import sweep, workspace

# On these the tests of fence, commit and ledger were run.
TESTED = frozenset({"btrfs", "ext4", "overlay", "tmpfs", "xfs"})
NETWORK = frozenset({"nfs", "nfs4"})
_FOR_TRIALS = {
    "overlay": "is a container's own layer, whose files go with it",
    "tmpfs": "is memory, whose files go with the machine",
}
_MEMORY = {"ramfs", "tmpfs"}
# fsync returns before anything is durable.
_UNSAFE_OPTIONS = ("nobarrier", "volatile")
# What Linux shows of actimeo=0 (fs/nfs/super.c, nfs_show_mount_options).
_NO_ATTRIBUTE_CACHE = frozenset({"acregmin=0", "acregmax=0", "acdirmin=0", "acdirmax=0"})
_ROOT = "output root"
_MOUNTS = Path("/proc/self/mountinfo")
# Beside the stores, for a moment; a store's name ends in .zarr, or is a folder.
_MOVED_OUT = re.compile(rf"{re.escape(STATE_FOLDER)}-[0-9a-f]{{16}}")
_ESCAPED = re.compile(r"\\([0-7]{3})")

# A network file system says ESTALE of what was removed.
_GONE = {errno.ENOENT, errno.ESTALE}
_HELD = {errno.ENOTEMPTY, errno.EEXIST}
_KERNEL = "see the kernel's log (dmesg) for what ails the disk"
# What to do about faults that say nothing of what a file system can do.
_MAY_CLEAR = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space, or raise the quota",
    errno.EROFS: f"mount it for writing; where it has turned read-only by itself, {_KERNEL}",
    errno.EIO: _KERNEL,
    # Whoever took this trial for one that a kill had left has removed its folder.
    errno.ENOENT: "",
    errno.ESTALE: "",
}
_MOST_CLOCK_OFFSET_S = 2.0
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system; `options` are those of the mount and of the file system."""

    point: Path
    kind: str
    options: frozenset[str]

    @property
    def missing_options(self) -> list[str]:
        """The mount options without which another machine sees a store too late."""
        missing = []
        if self.kind in NETWORK and "lookupcache=none" not in self.options:
            missing.append("lookupcache=none")
        cached = "noac" not in self.options and not self.options >= _NO_ATTRIBUTE_CACHE
        if self.kind in NETWORK and cached:
            missing.append("actimeo=0")
        return missing

    def __str__(self) -> str:
        """Return kind, mount point and options."""
        return f"{self.kind} at {self.point} ({','.join(sorted(self.options))})"


def mounts(listing: str) -> list[Mount]:
    """Return what a `mountinfo` lists, in its order (proc_pid_mountinfo(5))."""
    found = []
    for line in listing.splitlines():
        mounted, _, mounts_what = line.partition(" - ")
        point, options = mounted.split(" ")[4:6]
        kind, _source, own_options = mounts_what.split(" ", 2)
        every = frozenset(f"{options},{own_options}".split(","))
        found.append(Mount(Path(_decoded(point)), kind, every))
    return found


def mount_of(path: Path, listed: Iterable[Mount]) -> Mount:
    """Return the mount that an absolute path without links lies on.

    Of two at one mount point the later hides the earlier.
    """
    above = [mount for mount in listed if path.is_relative_to(mount.point)]
    return max(reversed(above), key=lambda mount: len(mount.point.parts))


def check(root: Path, accepted: str | None) -> list[Finding]:
    """Return what there is to warn of, where an output root can be written and does what it must.

    Raises
    ------
    UnusableRoot
        With what to change.
    StorageFault
        With what is wrong, where that may clear by itself.
    """
    findings = list(examine(root, accepted))
    failed = [each for each in findings if each.verdict is Verdict.FAILED]
    for finding in sorted(failed, key=lambda each: each.transient):
        error = StorageFault if finding.transient else UnusableRoot
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        raise error(f"output_root {root} cannot be used: {finding.said}{remedy}")
    return [finding for finding in findings if finding.verdict is Verdict.WARNING]


def examine(root: Path, accepted: str | None) -> Iterator[Finding]:
    """Yield what there is to say of an output root; takes milliseconds and leaves nothing behind.

    Parameters
    ----------
    accepted : str, optional
        A kind of file system to take though it was never tested.
    """
    try:
        if not root.is_dir():
            yield Finding.failed(_ROOT, "it is not a folder", "create it or mount it there")
            return
        yield _kind(mount_of(root.resolve(), _mounts()), accepted)
        refuse_links([root / STATE_FOLDER, root / TRIALS_FOLDER])
        with workspace(root) as folder:
            for trial in _TRIALS:
                yield _tried(trial, folder, root)
    except UnsafePath as error:
        yield Finding.failed(_ROOT, str(error), "put a folder in the link's place")
    except OSError as error:
        remedy = f"give user {os.getuid()} the right to"
        yield _failed(_ROOT, f"it cannot be written: {error}", error, remedy)
    else:
        yield Finding.ok(_ROOT, f"{root} can be written, and nothing is left there")


def examine_below(root: Path) -> Iterator[Finding]:
    """Yield whether stores below the root lie on its file system, as far as can be seen."""
    real = root.resolve()
    device = real.stat().st_dev
    with os.scandir(real) as entries:
        folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    others = {e.path for e in folders if e.stat(follow_symlinks=False).st_dev != device}
    others |= {str(m.point) for m in _mounts() if real in m.point.parents}
    if not others:
        yield Finding.ok("one file system", "nothing else is mounted below the output root")
        return
    named = ", ".join(sorted(others)[:_MOST_NAMED])
    more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    yield Finding.warning(
        "one file system",
        f"{named}{more}: another file system, on which no store can be written",
        "keep store keys off it, or make it a folder of the output root's own file system",
    )


def examine_clock(root: Path) -> Iterator[Finding]:
    """Yield whether the file system's clock is this machine's."""
    with workspace(root) as folder:
        before = time.time()
        _make(folder / "clock")
        after = time.time()
        made = (folder / "clock").stat().st_mtime
    offset = made - min(max(made, before), after)
    if abs(offset) <= _MOST_CLOCK_OFFSET_S:
        said = f"the output root's is within {_MOST_CLOCK_OFFSET_S:g} s of this machine's"
        yield Finding.ok("clock", f"{said}; RabbitMQ tells no time to compare")
    else:
        said = f"the output root's is {offset:+.1f} s off this machine's"
        yield Finding.warning("clock", said, "let NTP set both clocks")


def examine_scratch(folder: Path, wanted: int) -> Iterator[Finding]:
    """Yield whether the scratch file can lie in a folder: on a disk, with room for it."""
    check, remedy = "scratch folder", "give TILES_SCRATCH_FOLDER a folder on a disk with room"
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        yield Finding.failed(check, f"no file can be made in {folder}: {error}", remedy)
        return
    mount = mount_of(folder.resolve(), _mounts())
    if mount.kind in _MEMORY:
        said = f"{folder} is {mount.kind}: what lies there is memory beyond memory_budget_bytes"
        yield Finding.warning(check, said, remedy)
    elif free < wanted:
        said = f"{folder} has {free} bytes free, scratch_bytes is {wanted}"
        yield Finding.warning(check, said, f"{remedy}, or lower TILES_SCRATCH_BYTES")
    else:
        yield Finding.ok(check, f"{folder} has room for scratch_bytes {wanted}")


def _mounts() -> list[Mount]:
    return mounts(_MOUNTS.read_text(errors="surrogateescape"))


def _decoded(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)


def _kind(mount: Mount, accepted: str | None) -> Finding:
    faults, remedies = [], []
    if missing := mount.missing_options:
        faults.append(f"is mounted without {' and '.join(missing)}")
        remedies.append(f"mount it with {','.join(missing)}")
    if mount.kind not in TESTED and mount.kind != accepted:
        faults.append("was never tested")
        remedies.append(
            f"use one of {', '.join(sorted(TESTED))}, or set TILES_ACCEPT_FILESYSTEM={mount.kind}"
        )
    check = "file system"
    if faults:
        return Finding.failed(check, f"{mount} {' and '.join(faults)}", "; ".join(remedies))
    if mount.kind not in TESTED:
        said = f"{mount} was never tested, and is accepted by TILES_ACCEPT_FILESYSTEM"
        return Finding.warning(check, said, "try a takeover with two replicas before relying on it")
    if unsafe := [option for option in _UNSAFE_OPTIONS if option in mount.options]:
        said = f"{mount}: with {unsafe[0]}, what is acknowledged may be lost with the power"
        return Finding.warning(check, said, f"mount it without {unsafe[0]}")
    if mount.kind in _FOR_TRIALS:
        said = f"{mount} {_FOR_TRIALS[mount.kind]}"
        return Finding.warning(check, said, "for more than trials, mount a disk at the output root")
    return Finding.ok(check, str(mount))


def _failed(
    check: str, said: str, error: OSError, remedy: str, verdict: Verdict = Verdict.FAILED
) -> Finding:
    """Return that a call failed: with the remedy of its error, where that may clear by itself."""
    may_clear = error.errno in _MAY_CLEAR
    told = _MAY_CLEAR.get(error.errno or 0, "") or remedy
    return Finding(check, verdict, said, told, transient=may_clear)


# -- what the fence needs, tried out ------------------------------------------------------------


class _Unfit(Exception):
    """The file system does something that it must not do."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """`work` raises where the file system does not do it; it gets a folder of its own, and root."""

    name: str
    works: str
    work: Callable[[Path, Path], None]
    remedy: str = f"use a local file system: {', '.join(sorted(TESTED))}"
    verdict: Verdict = Verdict.FAILED


def _tried(trial: _Trial, workspace: Path, root: Path) -> Finding:
    folder = workspace / secrets.token_hex(4)
    try:
        folder.mkdir()
        trial.work(folder, root)
    except _Unfit as error:
        return Finding(trial.name, trial.verdict, str(error), trial.remedy)
    except OSError as error:
        return _failed(trial.name, f"it fails: {error}", error, trial.remedy, trial.verdict)
    return Finding.ok(trial.name, trial.works)


def _exclusive(folder: Path, _root: Path) -> None:
    said = "can be made once more: two consumers would own a store"
    (folder / "epoch").mkdir()
    _refused((folder / "epoch").mkdir, {errno.EEXIST}, f"a folder that exists {said}")
    _make(folder / "file")
    _refused(lambda: _make(folder / "file"), {errno.EEXIST}, f"a file that exists {said}")


def _renamed_over(folder: Path, _root: Path) -> None:
    old, new = folder / "old", folder / "new"
    _make(old)
    _make(new, b"new")
    os.rename(new, old)  # noqa: PTH104 - as the commit does
    if old.read_bytes() != b"new" or new.exists():
        raise _Unfit("a file renamed over another does not take its place")


def _nothing_enters(folder: Path, _root: Path) -> None:
    epoch, fenced, store = folder / "epoch", folder / "fenced", folder / "store"
    epoch.mkdir()
    store.mkdir()
    chunk, late = store / "chunk", epoch / "late"
    _make(chunk)
    _make(late)
    held = os.open(epoch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        epoch.rename(fenced)
        _refused(lambda: os.rename(late, chunk), _GONE, "a fenced owner's file can be moved")  # noqa: PTH104
        _nothing_enters_by(epoch / "entry", chunk)
        _refused(fenced.rmdir, _HELD, "a folder that holds a file can be removed")
        (fenced / "late").unlink()
        fenced.rmdir()
        _nothing_enters_by(fenced / "entry", chunk)
        # Whoever found the folder before it was removed still has it.
        _nothing_enters_by(Path("entry"), chunk, held)
    finally:
        os.close(held)


def _nothing_enters_by(entry: Path, chunk: Path, folder: int | None = None) -> None:
    said = "can be put into a folder that was removed: a late writer is not kept out"
    _refused(lambda: _make(entry, folder=folder), _GONE, f"a new file {said}")
    _refused(lambda: os.rename(chunk, entry, dst_dir_fd=folder), _GONE, f"a file {said}")


def _synced(folder: Path, _root: Path) -> None:
    write_file(folder / "file", [b"content"], 0o600)
    sync_folder(folder)


def _moved_out(folder: Path, root: Path) -> None:
    source, target = folder / "file", root / f"{STATE_FOLDER}-{folder.parent.name}"
    _make(source)
    _sweep_moved_out(root, source)
    try:
        os.rename(source, target)  # noqa: PTH104 - as the commit does
    finally:
        target.unlink(missing_ok=True)


def _sweep_moved_out(root: Path, beside: Path) -> None:
    # The right to list the root is nothing that the fence needs.
    with contextlib.suppress(OSError):
        paths = [root / name for name in listed(root) if _MOVED_OUT.fullmatch(name)]
        sweep((path for path in paths if not path.is_dir()), beside)


def _names_differ(folder: Path, _root: Path) -> None:
    _make(folder / "a.zarr")
    try:
        _make(folder / "A.zarr")
    except FileExistsError:
        raise _Unfit("a.zarr and A.zarr are one name: two stores could be one") from None


_TRIALS = (
    _Trial("fsync", "files and folders can be synced", _synced),
    _Trial("exclusive mkdir", "what exists is not made once more", _exclusive),
    _Trial("rename over", "a file takes another's place in one step", _renamed_over),
    _Trial("removed folders", "nothing can be put into a folder that was removed", _nothing_enters),
    _Trial(
        "rename out",
        f"files can be moved from {STATE_FOLDER} to the stores",
        _moved_out,
        f"give TILES_OUTPUT_ROOT a folder with {STATE_FOLDER} on the same file system",
    ),
    _Trial(
        "names",
        "names that differ in case are different",
        _names_differ,
        "use a file system, or a folder, that tells capital letters from small ones",
        Verdict.WARNING,
    ),
)


def _make(path: Path, content: bytes = b"", folder: int | None = None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600, dir_fd=folder)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _refused(work: Callable[[], None], numbers: set[int], said: str) -> None:
    try:
        work()
    except OSError as error:
        if error.errno not in numbers:
            raise
    else:
        raise _Unfit(said)
