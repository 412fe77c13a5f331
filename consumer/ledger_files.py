"""Finds and reads the ledgers below an output root.

What is damaged, or of an array that had the name before, counts as empty. Only who has taken the
store changes anything: with the first round, that is set aside or removed.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from consumer.blocks import ArrayKey
from consumer.commit import LEDGER_FOLDER, ledger_folder
from consumer.files import listed, refuse_links
from consumer.keys import STATE_FOLDER, STORE_SUFFIX
from consumer.ledger import LIMIT_BYTES, Files, Ledger
from consumer.ledger_format import (
    HEADER_NAME,
    Damaged,
    Header,
    Segment,
    decode_header,
    decode_segment,
    segment_number,
)


@dataclass(slots=True)
class _Found:
    """What is stored: `earlier` names the segments of an earlier ledger."""

    header: Header | None = None
    segments: dict[int, Segment] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)
    damaged: dict[str, bytes] = field(default_factory=dict)
    damages: list[str] = field(default_factory=list)


def load(
    root: Path, array: ArrayKey, fresh: Header, now_ms: int, limit_bytes: int = LIMIT_BYTES
) -> tuple[Ledger, list[str]]:
    """Return the ledger of an array whose store was taken, and what of it was damaged.

    It is empty where there is none, or where it is of an array that had the name before. What is
    damaged is set aside by the first round, under a name that ends with the time.

    Parameters
    ----------
    fresh : Header
        Of the array as it is, with nothing known, and a new id for the ledger.

    Raises
    ------
    OSError
        As the operating system gave it.
    UnsafePath
        Where a file is a symbolic link.
    """
    found = _found(root, array)
    usable = found.header is not None and found.header.same_array(fresh)
    unsaved: Files = dict.fromkeys(found.earlier if usable else found.names)
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    for name, content in found.damaged.items():
        unsaved[f"{name}.damaged-{stamp}"] = [content]
        if name != HEADER_NAME:
            unsaved[name] = None
    ledger = Ledger(
        array.path,
        found.header if found.header is not None and usable else fresh,
        found.segments if usable else {},
        stored=usable,
        unsaved={f"{array.path}/{name}": content for name, content in unsaved.items()},
        limit_bytes=limit_bytes,
    )
    return ledger, found.damages


def read(root: Path, array: ArrayKey) -> tuple[Ledger | None, list[str]]:
    """Return the ledger as it is stored, if there is one, and what of it was damaged."""
    found = _found(root, array)
    if found.header is None:
        return None, found.damages
    return Ledger(array.path, found.header, found.segments, stored=True), found.damages


def find(root: Path) -> Iterator[ArrayKey]:
    """Yield the arrays that have a ledger."""
    top = root / STATE_FOLDER
    for folder, _, files in os.walk(top):
        if HEADER_NAME not in files:
            continue
        parts = Path(folder).relative_to(top).parts
        depth = next((i for i, part in enumerate(parts, 1) if part.endswith(STORE_SUFFIX)), 0)
        if depth and parts[depth : depth + 1] == (LEDGER_FOLDER,) and parts[depth + 1 :]:
            yield ArrayKey("/".join(parts[:depth]), "/".join(parts[depth + 1 :]))


def stored_files(root: Path, array: ArrayKey) -> list[str]:
    """Return the names of an array's ledger files, the header's first if there is one."""
    names = listed(ledger_folder(root, array.store) / array.path)
    segments = sorted(name for name in names if segment_number(name) is not None)
    return [HEADER_NAME, *segments] if HEADER_NAME in names else segments


def signature(root: Path, array: ArrayKey) -> object:
    """Return what is equal as long as an array's ledger files are the same."""
    folder, found = ledger_folder(root, array.store) / array.path, []
    for name in stored_files(root, array):
        with suppress(FileNotFoundError):
            file = (folder / name).stat()
            found.append((name, file.st_ino, file.st_mtime_ns, file.st_size))
    return found


def _found(root: Path, array: ArrayKey) -> _Found:
    found = _Found()
    folder = ledger_folder(root, array.store) / array.path
    names = stored_files(root, array)
    refuse_links(folder / name for name in names)
    for name in names:
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            continue  # removed meanwhile
        try:
            _take(found, name, content)
        except Damaged as error:
            found.damaged[name] = content
            found.damages.append(f"{array.store}/{array.path}: {name} is damaged: {error}")
    return found


def _take(found: _Found, name: str, content: bytes) -> None:
    number = segment_number(name)
    if number is None:
        found.header = decode_header(content)
        return
    found.names.append(name)
    if found.header is None:
        return
    segment = decode_segment(content, number, found.header.ledger)
    if segment is None:
        found.earlier.append(name)
    else:
        found.segments[number] = segment
