"""The error tree and the translation of the operating system's errors."""

import errno
import os
import re
from collections.abc import Iterator

import pytest

from consumer import errors
from consumer.errors import (
    ConsumerError,
    Disposition,
    ParkError,
    PublishError,
    ReconnectError,
    RetryError,
    StopError,
    StorageFault,
    StoreNotWritable,
    StoreRemoved,
    UnsafePath,
    from_os_error,
)

BASES = {
    ParkError: Disposition.PARK,
    RetryError: Disposition.RETRY,
    ReconnectError: Disposition.RECONNECT,
    StopError: Disposition.STOP,
    PublishError: Disposition.RAISE,
}


def _below(base: type[ConsumerError]) -> Iterator[type[ConsumerError]]:
    for child in base.__subclasses__():
        yield child
        yield from _below(child)


def _drawn() -> Iterator[tuple[int, str, str]]:
    """Yield depth, name and remark of every line of the tree in the module's docstring."""
    for line in (errors.__doc__ or "").splitlines():
        found = re.fullmatch(r"    ((?:[│├└] {3}|[├└]── | {4})*)(\w+)(?: +(.*))?", line)
        if found:
            yield len(found[1]) // 4, found[2], found[3] or ""


def _drawn_edges() -> set[tuple[str, str]]:
    edges, above = set(), {}
    for depth, name, _ in _drawn():
        above[depth] = name
        if depth:
            edges.add((above[depth - 1], name))
    return edges


def test_the_tree_in_the_docstring_is_the_class_tree() -> None:
    classes = {
        (parent.__name__, e.__name__) for e in _below(ConsumerError) for parent in e.__bases__
    }

    assert _drawn_edges() == classes


def test_the_tree_in_the_docstring_names_each_error_once() -> None:
    names = [name for _, name, _ in _drawn()]

    assert len(names) == len(set(names))


@pytest.mark.parametrize(("base", "disposition"), BASES.items(), ids=str)
def test_the_docstring_gives_each_branch_its_disposition(
    base: type[ConsumerError], disposition: Disposition
) -> None:
    remarks = {name: remark for _, name, remark in _drawn()}

    assert remarks[base.__name__].split(":")[0] == disposition


@pytest.mark.parametrize(("base", "disposition"), BASES.items(), ids=str)
def test_every_error_of_a_branch_has_its_disposition(
    base: type[ConsumerError], disposition: Disposition
) -> None:
    assert {e.disposition for e in (base, *_below(base))} == {disposition}


def test_every_error_belongs_to_one_of_the_branches() -> None:
    assert set(ConsumerError.__subclasses__()) == set(BASES)


def test_every_parking_reason_is_used_once() -> None:
    reasons = [e.reason for e in ParkError.__subclasses__()]

    assert len(reasons) == len(set(reasons))


@pytest.mark.parametrize("error", ParkError.__subclasses__(), ids=lambda e: e.__name__)
def test_a_parking_reason_is_a_short_metric_label(error: type[ParkError]) -> None:
    assert re.fullmatch(r"[a-z_]{1,32}", error.reason)


OS_ERRORS = [
    (errno.ENAMETOOLONG, True, UnsafePath),
    (errno.ENAMETOOLONG, False, UnsafePath),
    (errno.ENOTDIR, True, UnsafePath),
    (errno.ELOOP, True, UnsafePath),
    (errno.EISDIR, True, UnsafePath),
    (errno.EACCES, True, StoreNotWritable),
    (errno.EACCES, False, StorageFault),
    (errno.EPERM, True, StoreNotWritable),
    (errno.EPERM, False, StorageFault),
    (errno.ENOENT, True, StoreRemoved),
    (errno.EXDEV, True, StoreNotWritable),
    (errno.EXDEV, False, StorageFault),
    (errno.ENOSPC, True, StorageFault),
    (errno.EIO, True, StorageFault),
    (errno.EDQUOT, True, StorageFault),
    (errno.EROFS, True, StoreNotWritable),
    (errno.EROFS, False, StorageFault),
    (errno.ESTALE, True, StorageFault),
    (errno.EMFILE, True, StorageFault),
]


@pytest.mark.parametrize(
    ("number", "root_writable", "kind"),
    OS_ERRORS,
    ids=[f"{errno.errorcode[n]}-root{'' if w else '-not'}-writable" for n, w, _ in OS_ERRORS],
)
def test_an_error_of_the_operating_system_becomes(
    number: int, root_writable: bool, kind: type[ConsumerError]
) -> None:
    error = OSError(number, os.strerror(number), "/out/a.zarr/x")

    assert type(from_os_error(error, root_writable=root_writable)) is kind


@pytest.mark.parametrize("number", sorted({n for n, _, _ in OS_ERRORS}), ids=errno.errorcode.get)
@pytest.mark.parametrize("part", ["strerror", "number", "path"])
def test_a_translated_error_says_what_failed_where(number: int, part: str) -> None:
    error = OSError(number, os.strerror(number), "/out/a.zarr/x")
    said = {"strerror": os.strerror(number), "number": f"errno {number}", "path": "/out/a.zarr/x"}

    assert said[part] in str(from_os_error(error, root_writable=True))


def test_a_store_on_another_file_system_is_told_what_to_do() -> None:
    error = OSError(errno.EXDEV, os.strerror(errno.EXDEV), "/out/a.zarr/x")

    assert "make it a folder of the root's own" in str(from_os_error(error, root_writable=True))


def test_an_error_without_a_number_is_a_storage_fault() -> None:
    assert type(from_os_error(OSError("gone"), root_writable=True)) is StorageFault
