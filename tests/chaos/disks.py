"""Disks that fail: one that loses what was not synced, one whose calls fail, one that never syncs.

Processes meet the last two through a `sitecustomize` on their `PYTHONPATH`.
"""

import contextlib
import fcntl
import os
import struct
import subprocess
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.product import NotRun
from harness import wait_until

# Linux, include/uapi/linux/fs.h and fs/ext4: FS_IOC_SHUTDOWN; the log is not flushed.
_IOC_SHUTDOWN = 0x8004587D
_NOLOGFLUSH = 2
_DISK_BYTES = 256 << 20
# Nothing but fsync writes the journal: the kernel's own commit comes after the test.
_OPTIONS = "loop,commit=600"


class CommandFailed(Exception):
    """A command that mounts or unmounts has failed."""


class PowerlessDisk:
    """An ext4 of its own, mounted through a loop device, that can lose its power.

    The cut stops every write at once: what is in memory and was not synced is gone, and calls
    fail with EIO until it is mounted again.
    """

    def __init__(self, folder: Path, mounted: Path) -> None:
        self._image = folder / "disk.img"
        self._mounted = mounted
        self._up = False
        self._was_cut = False

    def __enter__(self) -> Self:
        """Make and mount it; raises NotRun where the machine does not permit that."""
        with self._image.open("wb") as file:
            file.truncate(_DISK_BYTES)
        self._mounted.mkdir(parents=True)
        try:
            _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", str(self._image))
            self.mount()
        except CommandFailed as error:
            raise NotRun(str(error)) from error
        (self._mounted / "lost+found").rmdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._up:
            _run("umount", "-l", str(self._mounted))

    def mount(self) -> None:
        """Mount it, which plays back its journal."""
        _run("mount", "-t", "ext4", "-o", _OPTIONS, str(self._image), str(self._mounted))
        self._up = True

    def cut(self) -> None:
        """Cut the power; raises NotRun where that has never been possible."""
        descriptor = os.open(self._mounted, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _IOC_SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        except OSError as error:
            if self._was_cut:
                raise
            raise NotRun(f"this ext4 cannot be shut down: {error}") from error
        finally:
            os.close(descriptor)
        self._was_cut = True

    def unmount(self) -> None:
        """Unmount it, and return once it is mounted nowhere; nothing may have a file open on it.

        Another's view of the mounts, or the kernel's own end of the loop device, may come later:
        mounted meanwhile, it would be what was mounted before, which has no power any more.
        """
        _run("umount", str(self._mounted))
        self._up = False
        wait_until(lambda: not self._attached(), f"the end of the loop device of {self._image}")

    def _attached(self) -> bool:
        """Whether a loop device has the image."""
        files = Path("/sys/block").glob("loop*/loop/backing_file")
        return any(_read(file).removesuffix(" (deleted)") == str(self._image) for file in files)


def _read(file: Path) -> str:
    """Return what a file of the kernel's says; nothing where it has just gone."""
    with contextlib.suppress(OSError):
        return file.read_text().strip()
    return ""


def _run(*command: str) -> None:
    """Run a command that needs rights which not every machine gives; raises CommandFailed."""
    try:
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CommandFailed(f"there is no {command[0]} here") from error
    if ended.returncode:
        raise CommandFailed(f"{' '.join(command)} failed: {ended.stderr.strip()}")


_FAILING = """
import errno, os, random, stat, sys

_root, _share, _journal = (os.environ[f"FAILING_{n}"] for n in ("ROOT", "SHARE", "JOURNAL"))
_errors = (errno.EIO, errno.ENOSPC)


def _fail(call, path):
    if not path.startswith(_root) or random.random() >= float(_share):
        return
    number = random.choice(_errors)
    journal = os.open(_journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    _write(journal, f"{errno.errorcode[number]} {call}\\n".encode())
    os.close(journal)
    raise OSError(number, os.strerror(number), path)


def _of(descriptor):
    return os.readlink(f"/proc/self/fd/{descriptor}")


def write(descriptor, data):
    _fail("write", _of(descriptor))
    return _write(descriptor, data)


def writev(descriptor, parts):
    _fail("write", _of(descriptor))
    return _writev(descriptor, parts)


def fsync(descriptor):
    folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    _fail("folder fsync" if folder else "fsync", _of(descriptor))
    _fsync(descriptor)


def rename(source, target, **folders):
    _fail("rename", os.fspath(target))
    _rename(source, target, **folders)


_write, _writev, _fsync, _rename = os.write, os.writev, os.fsync, os.rename
# The other process writes nothing below the root.
if "consumer.writer" in sys.orig_argv:
    os.write, os.writev, os.fsync, os.rename = write, writev, fsync, rename
"""

_UNSYNCED = """
import os, stat

_fsync = os.fsync


def fsync(descriptor):
    if os.environ["UNSYNCED"] == "folders" and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        _fsync(descriptor)


os.fsync = fsync
"""


class FailingDisk:
    """Lets a share of a writer's calls below a root fail, with EIO or with ENOSPC."""

    CALLS = ("write", "fsync", "rename", "folder fsync")

    def __init__(self, folder: Path, root: Path, share: float) -> None:
        self._journal = folder / "failed"
        self.environment = {
            **_customized(folder / "failing-disk", _FAILING),
            "FAILING_ROOT": str(root.resolve()),
            "FAILING_SHARE": str(share),
            "FAILING_JOURNAL": str(self._journal),
        }

    def failed(self) -> Counter[str]:
        """Return how often each call failed, by error and call."""
        with contextlib.suppress(FileNotFoundError):
            return Counter(self._journal.read_text().splitlines())
        return Counter()


def unsynced(folder: Path, what: str) -> dict[str, str]:
    """Return the environment of a process whose fsync does nothing; `what`: all or folders."""
    return {**_customized(folder / "unsynced", _UNSYNCED), "UNSYNCED": what}


def together(folder: Path, *environments: dict[str, str]) -> dict[str, str]:
    """Return one environment of several, each with a `sitecustomize`, of which all are run."""
    merged: dict[str, str] = {}
    code = ""
    for each in environments:
        file = Path(each["PYTHONPATH"].split(os.pathsep)[0]) / "sitecustomize.py"
        code += f"exec(compile(open({str(file)!r}).read(), {str(file)!r}, 'exec'), {{}})\n"
        merged |= each
    return merged | _customized(folder / "together", code)


def _customized(folder: Path, code: str) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    # First of all: a distribution may have a sitecustomize of its own.
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
