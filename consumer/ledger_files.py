"""Finds and reads the ledgers below an output root.

What is damaged, or of an array that had the name before, counts as empty. Only who has taken the
store changes anything: with the first round, that is set aside or removed.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from consumer.blocks import ArrayKey
from consumer.commit import LEDGER_FOLDER, ledger_folder
from consumer.files import listed, refuse_links
from consumer.keys import STATE_FOLDER, STORE_SUFFIX
from consumer.ledger import LIMIT_BYTES, Files, Ledger
from consumer.ledger_format import (
    HEADER_NAME,
    LEDGER_ID,
    Damaged,
    Header,
    Segment,
    decode_header,
    decode_segment,
    segment_number,
)

# Of format 3, and of format 2.
_METADATA = ("zarr.json", ".zarray", ".zattrs")


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


def read_present(root: Path, array: ArrayKey) -> tuple[Ledger | None, list[str]]:
    """Return the ledger as `read` does, but empty where the array that it is of is gone.

    Where the array cannot be looked at, the ledger stands, and that is said with the damages.
    """
    ledger, damages = read(root, array)
    if ledger is None or not ledger.filled_voxels:
        return ledger, damages
    header, name = ledger.header, f"{array.store}/{array.path}"
    try:
        found = _identity(root / array.store / array.path)
    except OSError as error:
        damages.append(f"{name}: whether it is still there cannot be seen: {error}")
        return ledger, damages
    if found != (header.id, header.shape, header.file):
        ledger.restart(header.ledger)
        damages.append(f"{name} was removed or replaced since: what was written is missing")
    return ledger, damages


def find(root: Path) -> Iterator[ArrayKey]:
    """Yield the arrays that have a ledger."""
    top = root / STATE_FOLDER
    for folder, _, files in os.walk(top, onerror=_raise):
        if HEADER_NAME not in files:
            continue
        parts = Path(folder).relative_to(top).parts
        depth = next((i for i, part in enumerate(parts, 1) if part.endswith(STORE_SUFFIX)), 0)
        if depth and parts[depth : depth + 1] == (LEDGER_FOLDER,) and parts[depth + 1 :]:
            yield ArrayKey("/".join(parts[:depth]), "/".join(parts[depth + 1 :]))


def _raise(error: OSError) -> None:
    # Of a store that is removed meanwhile there is nothing to find.
    if error.errno not in (errno.ENOENT, errno.ESTALE):
        raise error


def stored_files(root: Path, array: ArrayKey) -> list[str]:
    """Return the names of an array's ledger files, the header's first if there is one."""
    names = listed(ledger_folder(root, array.store) / array.path)
    segments = sorted(name for name in names if segment_number(name) is not None)
    return [HEADER_NAME, *segments] if HEADER_NAME in names else segments


def signature(root: Path, array: ArrayKey) -> object:
    """Return what is equal as long as an array and its ledger files are the same."""
    folder, found = ledger_folder(root, array.store) / array.path, []
    ledgers = (folder / name for name in stored_files(root, array))
    for path in (*ledgers, *(root / array.store / array.path / name for name in _METADATA)):
        with suppress(OSError):
            file = path.stat()
            found.append((path, file.st_ino, file.st_mtime_ns, file.st_size))
    return found


def _identity(folder: Path) -> object:
    """Return id, shape and shape of a file of the array in a folder; None where there is none.

    As a ledger's header has them; without what zarr would say of it, which takes long to import.
    """
    metadata = _json(folder / "zarr.json")
    if metadata is not None:
        attributes = metadata.get("attributes")
        grid = metadata.get("chunk_grid")
        configuration = grid.get("configuration") if isinstance(grid, dict) else None
        file = configuration.get("chunk_shape") if isinstance(configuration, dict) else None
    else:
        metadata = _json(folder / ".zarray")
        if metadata is None:
            return None
        attributes = _json(folder / ".zattrs")
        file = metadata.get("chunks")
    found = attributes.get(LEDGER_ID) if isinstance(attributes, dict) else None
    return found if isinstance(found, str) else "", _shape(metadata.get("shape")), _shape(file)


def _shape(found: object) -> tuple[object, ...]:
    return tuple(found) if isinstance(found, list) else ()


def _json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, empty where it is damaged; None where there is no file."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


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
