"""Whether a file system does what the fence needs: real ones, and faults that each check finds."""

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from consumer import filesystem
from consumer.errors import ConsumerError, StorageFault, UnusableRoot
from consumer.filesystem import (
    Mount,
    check,
    examine,
    examine_below,
    examine_clock,
    examine_scratch,
    mount_of,
    mounts,
)
from consumer.findings import Finding, Verdict
from faults import mounted

MountKind = Callable[..., Path]


@pytest.fixture
def mount(request: pytest.FixtureRequest) -> MountKind:
    """Return what mounts a file system without a device, until the test ends."""

    def make(kind: str, folder: Path, options: str = "rw") -> Path:
        context: AbstractContextManager[Path] = mounted(kind, folder, options)
        try:
            made = context.__enter__()
        except PermissionError as error:
            pytest.skip(str(error))
        request.addfinalizer(lambda: context.__exit__(None, None, None))
        return made

    return make


def verdicts(root: Path, accepted: str | None = None) -> dict[str, Verdict]:
    """Return how each check ended."""
    return {finding.check: finding.verdict for finding in examine(root, accepted)}


def found(root: Path, check: str, accepted: str | None = None) -> Finding:
    """Return what a check found."""
    (finding,) = (each for each in examine(root, accepted) if each.check == check)
    return finding


CHECKS = {
    "file system",
    "output root",
    "fsync",
    "exclusive mkdir",
    "rename over",
    "removed folders",
    "rename out",
    "names",
}


# -- real file systems --------------------------------------------------------------------------


def test_a_local_file_system_does_all_and_keeps_nothing(tmp_path: Path) -> None:
    ended = verdicts(tmp_path)
    # The kind may be a container's own.
    assert ended.pop("file system") in {Verdict.OK, Verdict.WARNING}
    assert ended == dict.fromkeys(CHECKS - {"file system"}, Verdict.OK)
    assert list(tmp_path.iterdir()) == []


def test_the_state_of_a_consumer_at_work_stays(tmp_path: Path) -> None:
    epoch = tmp_path / ".tiles/a.zarr/epochs/1-ab"
    epoch.mkdir(parents=True)
    verdicts(tmp_path)
    list(examine_clock(tmp_path))
    assert sorted(tmp_path.rglob("*")) == [epoch, *list(epoch.parents)[:3]][::-1]


def test_memory_is_for_trials(mount: MountKind, tmp_path: Path) -> None:
    root = mount("tmpfs", tmp_path / "root", "size=1m")
    finding = found(root, "file system")
    assert finding.verdict is Verdict.WARNING
    assert finding.said.startswith(f"tmpfs at {root} (")
    assert set(verdicts(root).values()) == {Verdict.OK, Verdict.WARNING}


def test_what_was_never_tested_is_refused(mount: MountKind, tmp_path: Path) -> None:
    finding = found(mount("ramfs", tmp_path / "root"), "file system")
    assert finding.verdict is Verdict.FAILED
    assert "was never tested" in finding.said
    assert finding.remedy.endswith("or set TILES_ACCEPT_FILESYSTEM=ramfs")


@pytest.mark.parametrize(
    ("accepted", "verdict"),
    [("ramfs", Verdict.WARNING), ("nfs4", Verdict.FAILED)],
)
def test_only_the_kind_that_is_named_is_accepted(
    mount: MountKind, tmp_path: Path, accepted: str, verdict: Verdict
) -> None:
    assert found(mount("ramfs", tmp_path / "root"), "file system", accepted).verdict is verdict


def test_a_full_disk_is_told_to_be_full(mount: MountKind, tmp_path: Path) -> None:
    root = mount("tmpfs", tmp_path / "root", "size=64k")
    with suppress(OSError):
        (root / "filler").write_bytes(bytes(1 << 20))
    finding = found(root, "fsync")
    assert (finding.verdict, finding.remedy) == (Verdict.FAILED, "free space")
    with pytest.raises(StorageFault, match=r"No space left on device.*; free space"):
        check(root, None)


def test_a_root_that_is_read_only_cannot_be_written(mount: MountKind, tmp_path: Path) -> None:
    finding = found(mount("tmpfs", tmp_path / "root", "ro"), "output root")
    assert finding.verdict is Verdict.FAILED
    assert "Read-only file system" in finding.said
    with pytest.raises(StorageFault, match="Read-only file system"):
        check(tmp_path / "root", None)


@pytest.mark.parametrize(
    ("number", "raised", "remedy"),
    [
        (errno.ENOSPC, StorageFault, "free space"),
        (errno.EDQUOT, StorageFault, "raise the quota"),
        (errno.EROFS, StorageFault, "mount it for writing"),
        (errno.EIO, StorageFault, "see the kernel's log"),
        (errno.EACCES, UnusableRoot, "the right to"),
        (errno.EPERM, UnusableRoot, "the right to"),
    ],
    ids=lambda given: errno.errorcode[given] if isinstance(given, int) else "",
)
def test_what_may_clear_by_itself_is_told_from_what_somebody_must_change(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    raised: type[ConsumerError],
    remedy: str,
) -> None:
    def mkdir(*_arguments: Any, **_named: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(raised, match=f"{os.strerror(number)}.*; .*{remedy}"):
        check(tmp_path, None)


def test_a_full_disk_of_a_kind_that_was_never_tested_is_refused(
    mount: MountKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = mount("tmpfs", tmp_path / "root", "size=64k")
    with suppress(OSError):
        (root / "filler").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(filesystem, "TESTED", frozenset({"ext4"}))
    with pytest.raises(UnusableRoot, match="was never tested"):
        check(root, None)


def test_a_root_that_can_be_used_has_nothing_but_warnings(tmp_path: Path) -> None:
    assert {finding.check for finding in check(tmp_path, None)} <= {"file system"}


def test_a_state_folder_on_another_file_system_is_refused(mount: MountKind, tmp_path: Path) -> None:
    mount("tmpfs", tmp_path / ".tiles")
    finding = found(tmp_path, "rename out")
    assert finding.verdict is Verdict.FAILED
    assert "Invalid cross-device link" in finding.said
    assert "on the same file system" in finding.remedy


@pytest.mark.parametrize("below", ["plate7", "plate7/raw"])
def test_another_file_system_below_the_root_is_told(
    mount: MountKind, tmp_path: Path, below: str
) -> None:
    assert [finding.verdict for finding in examine_below(tmp_path)] == [Verdict.OK]
    other = mount("tmpfs", tmp_path / below)
    (finding,) = examine_below(tmp_path)
    assert finding.verdict is Verdict.WARNING
    assert finding.said.startswith(f"{other}: ")


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "nothing"):
        assert verdicts(tmp_path / name) == {"output root": Verdict.FAILED}


def test_a_link_to_the_state_folder_is_refused(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    for folder in (elsewhere, root):
        folder.mkdir()
    (root / ".tiles").symlink_to(elsewhere)
    assert found(root, "output root").verdict is Verdict.FAILED
    assert list(elsewhere.iterdir()) == []


# -- file systems that do not do it -------------------------------------------------------------


def _makes_folders_twice(real: Any) -> dict[str, Any]:
    def mkdir(*arguments: Any, **named: Any) -> None:
        with suppress(FileExistsError):
            real["mkdir"](*arguments, **named)

    return {"mkdir": mkdir}


def _makes_files_twice(real: Any) -> dict[str, Any]:
    def open_(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        descriptor: int = real["open"](path, flags & ~os.O_EXCL, *arguments, **named)
        return descriptor

    return {"open": open_}


def _copies_for_a_rename(real: Any) -> dict[str, Any]:
    def rename(source: Any, target: Any, **named: Any) -> None:
        if Path(source).is_dir() or named:
            real["rename"](source, target, **named)
        else:
            Path(target).write_bytes(Path(source).read_bytes())

    return {"rename": rename}


def _keeps_the_old_at_a_rename(real: Any) -> dict[str, Any]:
    def rename(source: Any, target: Any, **named: Any) -> None:
        if Path(target).is_file():
            Path(source).unlink()
        else:
            real["rename"](source, target, **named)

    return {"rename": rename}


def _renames_into_what_was_removed(real: Any) -> dict[str, Any]:
    def rename(source: Any, target: Any, **named: Any) -> None:
        with suppress(FileNotFoundError):
            real["rename"](source, target, **named)

    return {"rename": rename}


def _renames_into_what_was_removed_for_who_holds_it(real: Any) -> dict[str, Any]:
    def rename(source: Any, target: Any, **named: Any) -> None:
        with suppress(*[FileNotFoundError] * bool(named)):
            real["rename"](source, target, **named)

    return {"rename": rename}


def _makes_files_in_what_was_removed(real: Any) -> dict[str, Any]:
    def open_(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        try:
            descriptor: int = real["open"](path, flags, *arguments, **named)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            return os.memfd_create("lost")
        return descriptor

    return {"open": open_}


def _removes_what_holds_files(real: Any) -> dict[str, Any]:
    def rmdir(path: Any, **named: Any) -> None:
        for file in Path(path).iterdir():
            file.unlink()
        real["rmdir"](path, **named)

    return {"rmdir": rmdir}


def _syncs_no_folder(real: Any) -> dict[str, Any]:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real["fsync"](descriptor)

    return {"fsync": fsync}


def _ignores_case(real: Any) -> dict[str, Any]:
    def open_(path: Any, *arguments: Any, **named: Any) -> int:
        path = Path(path)
        given = path.with_name(path.name.lower()) if path.name else path
        descriptor: int = real["open"](given, *arguments, **named)
        return descriptor

    return {"open": open_}


FAULTS: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "makes folders twice": (_makes_folders_twice, "exclusive mkdir"),
    "makes files twice": (_makes_files_twice, "exclusive mkdir"),
    "copies for a rename": (_copies_for_a_rename, "rename over"),
    "keeps the old at a rename": (_keeps_the_old_at_a_rename, "rename over"),
    "renames into what was removed": (_renames_into_what_was_removed, "removed folders"),
    "renames for who holds it": (
        _renames_into_what_was_removed_for_who_holds_it,
        "removed folders",
    ),
    "makes files in what was removed": (_makes_files_in_what_was_removed, "removed folders"),
    "removes what holds files": (_removes_what_holds_files, "removed folders"),
    "syncs no folder": (_syncs_no_folder, "fsync"),
    "ignores case": (_ignores_case, "names"),
}
REAL = {name: getattr(os, name) for name in ("mkdir", "open", "rename", "rmdir", "fsync")}


@pytest.mark.parametrize(("fault", "check"), FAULTS.values(), ids=FAULTS)
def test_a_file_system_that_does_not_do_it_is_found_by_its_check(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Any], dict[str, Any]],
    check: str,
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with monkeypatch.context() as patched:
        for name, replacement in fault(REAL).items():
            patched.setattr(os, name, replacement)
        finding = found(root, check)
    assert finding.verdict is (Verdict.WARNING if check == "names" else Verdict.FAILED)
    assert finding.remedy
    assert not finding.transient
    shutil.rmtree(root)


def test_a_clock_that_is_off_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.verdict for finding in examine_clock(tmp_path)] == [Verdict.OK]
    now = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: now)
    (finding,) = examine_clock(tmp_path)
    assert finding.verdict is Verdict.WARNING
    assert "+3600" in finding.said
    assert list(tmp_path.iterdir()) == []


# -- mounts -------------------------------------------------------------------------------------

LISTING = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 0:31 / /data rw,nosuid shared:9 master:2 - xfs /dev/vdb rw,attr2
31 30 0:40 / /data/my\040plates\134x\011 rw - nfs4 nas:/a\040b rw,vers=4.2,hard,lookupcache=pos
32 30 0:41 /sub /data/hidden rw - ext4 /dev/vdc rw
33 30 0:42 / /data/hidden ro - fuse.sshfs host:/x rw,user_id=0
"""

PLACES = {
    "/": ("/", "ext4"),
    "/database": ("/", "ext4"),
    "/data": ("/data", "xfs"),
    "/data/a/b": ("/data", "xfs"),
    "/data/my plates\\x\t/7": ("/data/my plates\\x\t", "nfs4"),
    "/data/hidden/deep": ("/data/hidden", "fuse.sshfs"),
}


@pytest.mark.parametrize(("path", "where"), PLACES.items())
def test_a_path_lies_on_the_mount_that_is_nearest_above_it_and_latest(
    path: str, where: tuple[str, str]
) -> None:
    mount = mount_of(Path(path), mounts(LISTING))
    assert (str(mount.point), mount.kind) == where


def test_the_options_are_those_of_the_mount_and_of_the_file_system() -> None:
    mount = mount_of(Path("/data/hidden"), mounts(LISTING))
    assert mount.options == {"ro", "rw", "user_id=0"}


def test_a_mount_with_a_space_in_its_name_is_found(mount: MountKind, tmp_path: Path) -> None:
    root = mount("tmpfs", tmp_path / "my plates")
    (tmp_path / "link").symlink_to(root)
    assert f"tmpfs at {root} (" in found(tmp_path / "link", "file system").said


CACHED = "acregmin=0,acregmax=0,acdirmin=0"
NFS: dict[str, tuple[str, str, list[str]]] = {
    "as it comes": ("nfs4", "rw,hard", ["lookupcache=none", "actimeo=0"]),
    "version 3": ("nfs", "rw,hard", ["lookupcache=none", "actimeo=0"]),
    "lookups only": ("nfs4", "rw,lookupcache=none", ["actimeo=0"]),
    "negative lookups": ("nfs4", "rw,noac,lookupcache=pos", ["lookupcache=none"]),
    "attributes only": ("nfs4", f"rw,{CACHED},acdirmax=0", ["lookupcache=none"]),
    "folders cached": ("nfs4", f"rw,{CACHED},lookupcache=none", ["actimeo=0"]),
    "all": ("nfs4", f"rw,{CACHED},acdirmax=0,lookupcache=none", []),
    "noac": ("nfs", "rw,sync,noac,lookupcache=none", []),
    "no network": ("ext4", "rw", []),
}


@pytest.mark.parametrize(("kind", "options", "missing"), NFS.values(), ids=NFS)
def test_what_a_network_file_system_is_mounted_without_is_named(
    kind: str, options: str, missing: list[str]
) -> None:
    mount = Mount(Path("/data"), kind, frozenset(options.split(",")))
    assert mount.missing_options == missing
    finding = filesystem._kind(mount, kind)
    assert (finding.verdict is Verdict.FAILED) == bool(missing)
    assert all(option in finding.said and option in finding.remedy for option in missing)


@pytest.mark.parametrize("option", ["nobarrier", "volatile"])
def test_an_option_with_which_fsync_promises_nothing_is_told(option: str) -> None:
    finding = filesystem._kind(Mount(Path("/data"), "ext4", frozenset({"rw", option})), None)
    assert finding.verdict is Verdict.WARNING
    assert option in finding.remedy


# -- the scratch folder -------------------------------------------------------------------------


def scratch(folder: Path, wanted: int = 0) -> Finding:
    """Return what is said of a scratch folder."""
    (finding,) = examine_scratch(folder, wanted)
    assert finding.check == "scratch folder"
    return finding


def test_a_scratch_folder_in_memory_is_warned_of(mount: MountKind, tmp_path: Path) -> None:
    finding = scratch(mount("tmpfs", tmp_path / "scratch"))
    assert finding.verdict is Verdict.WARNING
    assert "memory beyond memory_budget_bytes" in finding.said


def test_a_scratch_folder_without_room_is_warned_of(tmp_path: Path) -> None:
    wanted = 1 << 62
    finding = scratch(tmp_path, wanted)
    assert finding.verdict is Verdict.WARNING
    assert "bytes free" in finding.said or "memory" in finding.said


def test_a_scratch_folder_that_is_not_there_fails(tmp_path: Path) -> None:
    finding = scratch(tmp_path / "none")
    assert finding.verdict is Verdict.FAILED
    assert "No such file or directory" in finding.said
    assert "TILES_SCRATCH_FOLDER" in finding.remedy
    assert list(tmp_path.iterdir()) == []
