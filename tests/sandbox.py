"""Runs a process in a file tree of its own, as a container's: other root, user and host name.

Programs and libraries are this machine's, read-only; nothing else of it is in the tree. A mount
namespace holds all mounts of the machine for as long as it lives, which would keep other tests'
file systems busy: so the old root is let go before the process starts.
"""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

NEEDED = ("unshare", "setpriv", "pivot_root", "mount", "umount", "hostname")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
# Docker's and Kubernetes' size of a container's shared memory.
_SHARED_MEMORY = "64m"


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine, and where the process sees it."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Sandbox:
    """What a process sees, and who it is there.

    Attributes
    ----------
    tree : Path
        The folder that is its root.
    user : int, optional
        Its user and group, without capabilities and ways to get any; none: root.
    """

    tree: Path
    mounts: Sequence[Mount] = ()
    user: int | None = None
    groups: Sequence[int] = ()
    read_only: bool = False
    host: str = "sandbox"
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that becomes `argv` in there, with the same process id."""
        lines = [*self._mounts(), *self._pivot(), f"exec {shlex.join(self._as_user(argv))}"]
        script = "\n".join(("set -eu", *lines))
        return ["unshare", "--mount", "--uts", "--propagation=private", "sh", "-c", script]

    def run(self, argv: Sequence[str], timeout_s: float = 600.0) -> str:
        """Run to its end and return what it printed; fails where it fails."""
        done = subprocess.run(
            self.command(argv),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{shlex.join(argv)}:\n{done.stdout[-3000:]}"
        return done.stdout

    def _mounts(self) -> Iterator[str]:
        tree = str(self.tree)
        yield shlex.join(["mount", "--bind", tree, tree])
        for mount in (*_system(), *self.mounts):
            place = self.tree / mount.target.lstrip("/")
            _make_place(mount.source, place)
            yield shlex.join(["mount", "--bind", str(mount.source), str(place)])
            if not mount.writable:
                yield shlex.join(["mount", "-o", "remount,bind,ro", str(place)])
        yield from self._devices()

    def _devices(self) -> Iterator[str]:
        for name in ("proc", "dev"):
            (self.tree / name).mkdir(exist_ok=True)
        _link_libraries(self.tree)
        tree = shlex.quote(str(self.tree))
        yield f"mount --bind /proc {tree}/proc"
        yield f"mount -t tmpfs -o mode=755 tmpfs {tree}/dev"
        yield f"mkdir {tree}/dev/shm"
        yield f"mount -t tmpfs -o size={_SHARED_MEMORY},mode=1777 tmpfs {tree}/dev/shm"
        for name in _DEVICES:
            yield f"touch {tree}/dev/{name}; mount --bind /dev/{name} {tree}/dev/{name}"
        for name, target in _LINKS.items():
            yield f"ln -s /proc/self/{target} {tree}/dev/{name}"

    def _pivot(self) -> Iterator[str]:
        # Of its own, since others may start in the same tree.
        old = tempfile.mkdtemp(prefix=".old-", dir=self.tree)
        name = Path(old).name
        yield shlex.join(["cd", str(self.tree)])
        yield f"pivot_root . {name}; umount -l /{name}; rmdir /{name}"
        if self.read_only:
            yield "mount -o remount,bind,ro /"
        yield shlex.join(["hostname", self.host])
        yield shlex.join(["cd", self.folder])

    def _as_user(self, argv: Sequence[str]) -> list[str]:
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        whole = ["env", "-i", *variables, *argv]
        if self.user is None:
            return whole
        user = [f"--reuid={self.user}", f"--regid={self.user}"]
        groups = ",".join(str(group) for group in (self.user, *self.groups))
        bare = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        return ["setpriv", *user, f"--groups={groups}", *bare, *whole]


def require_sandbox(folder: Path) -> None:
    """Skip the test where this user or machine may not make one, with the reason.

    What else is in the way fails the test in CI: programs that each Debian has, or the sandbox.
    """
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        _lack(f"there is no {', '.join(missing)} here")
    if os.geteuid() != 0:
        pytest.skip("a file tree of its own takes root")
    if _said(["unshare", "--mount", "--uts", "true"]):
        pytest.skip("this machine permits no mounts")
    folder.mkdir(parents=True, exist_ok=True)
    said = _said(Sandbox(folder, user=65532).command(["true"]))
    if said:
        _lack(f"no file tree of its own can be made here: {said}")


def _lack(reason: str) -> NoReturn:
    """Fail the test in CI, and skip it elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _said(command: Sequence[str]) -> str:
    """Return what is wrong with a command; nothing where it succeeds."""
    tried = subprocess.run(command, check=False, capture_output=True, text=True)
    return f"exit code {tried.returncode}: {tried.stderr.strip()}" if tried.returncode else ""


def _system() -> list[Mount]:
    """Return where this machine's programs and libraries lie."""
    return [Mount(Path("/usr"), "/usr")]


def _make_place(source: Path, place: Path) -> None:
    if source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def _link_libraries(tree: Path) -> None:
    """Link /bin, /lib and so on into /usr, as this machine does."""
    for name in ("bin", "sbin", "lib", "lib64"):
        link = Path("/", name)
        if link.is_symlink() and not (tree / name).is_symlink():
            (tree / name).symlink_to(link.readlink())
