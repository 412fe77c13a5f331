"""Opens and creates stores, groups and arrays, and checks them against what messages say.

Runs in worker threads and keeps nothing: which handles stay open is the owning thread's business.
Metadata is written through the same commit as blocks, and as late: an array that does not exist is
made with its first block.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import LocalStore, MemoryStore, StorePath

from consumer.blocks import ArrayKey, StoredArray
from consumer.commit import Commit, Step, no_step
from consumer.contract import ArrayEntry
from consumer.coverage import Box
from consumer.encoder import AnyArray, Encoder
from consumer.errors import ArrayMismatch, DamagedBlock, Leftovers, is_shortage
from consumer.files import refuse_links
from consumer.layouts import check_block, stored_layout
from consumer.ledger_format import LEDGER_ID
from consumer.new_arrays import (
    NOTHING,
    metadata_key,
    new_layout,
    new_metadata,
    parents,
)
from consumer.placement import Layout

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer

_METADATA_FILES = ("zarr.json", ".zarray", ".zgroup")


@dataclass(frozen=True)
class StoreFolder:
    """A store as a reader sees it."""

    key: str
    path: Path
    reader: LocalStore


@dataclass(frozen=True)
class Store(StoreFolder):
    """A store that was taken: where to read, and how to commit.

    Both are worth nothing once another took it; then the store and its arrays are opened anew.
    """

    commit: Commit


class Metadata:
    """The file that says what an array is: as it was found, or yet to be made. Safe in threads.

    Parameters
    ----------
    store : StoreFolder
        One that was taken where something is to be made.
    path : str
        The array's, in the store.
    unmade : mapping
        By path, what is to be made where it is missing: the groups above, and the array's own.
    """

    def __init__(self, store: StoreFolder, path: str, unmade: "Mapping[str, Buffer]") -> None:
        self._store = store
        self._path = path
        self._folder = store.path / path
        self._unmade = unmade
        # Equal as long as the file is the one that was read; None where there is none.
        self._stamp = _stamp(self._folder)
        # While it is made, it is there, and not yet known to be the one.
        self._making = threading.RLock()

    @property
    def made(self) -> bool:
        """Whether there is nothing to be made."""
        return not self._unmade

    def stands(self) -> bool:
        """Whether the file is still there, or still to be made, and not another."""
        with self._making:
            return _stamp(self._folder) == self._stamp

    def require(self) -> None:
        """Raise FileNotFoundError where it is gone or replaced: the array is another."""
        if not self.stands():
            raise FileNotFoundError(errno.ENOENT, "removed or replaced", str(self._folder))

    def make(self) -> None:
        """Make what is to be made, durably.

        Raises
        ------
        ArrayMismatch
            Where something has come in the way since the array was opened.
        """
        with self._making:
            if not self._unmade:
                return
            assert isinstance(self._store, Store)
            self.require()
            missing = [*_missing_groups(self._store, self._path), self._path]
            made = {metadata_key(path): [self._unmade[path].to_bytes()] for path in missing}
            self._store.commit.commit(made)
            self._stamp, self._unmade = _stamp(self._folder), NOTHING


@dataclass(frozen=True)
class ReadableArray(StoredArray):
    """An array that can be read. One that is yet to be made holds its fill value only.

    Attributes
    ----------
    folder : Path
        Where it is stored.
    """

    folder: Path
    array: AnyArray
    encoder: Encoder
    metadata: Metadata

    @property
    def ledger_id(self) -> str:
        """What tells it from another array under its name; empty where others made it."""
        found = self.array.attrs.get(LEDGER_ID)
        return found if isinstance(found, str) else ""

    def file(self, number: tuple[int, ...]) -> Path:
        """Return where the file of that number along each axis is stored."""
        return self.folder / self.array.metadata.encode_chunk_key(number)

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return what is stored in a box; the fill value where nothing is.

        Raises
        ------
        DamagedBlock
            Where a stored chunk cannot be decoded.
        UnsafePath
            Where a symbolic link stands on the way to one.
        """
        if not self.metadata.made:
            return np.full(box.shape, self.array.fill_value, self.layout.dtype)
        refuse_links(self._paths(box))
        with self._decoding(box):
            return np.array(self.array[box.slices], dtype=self.layout.dtype)

    def chunks_left_out(self, number: tuple[int, ...]) -> list[Box]:
        """Return the chunks, in the array, that the shard of that number does not hold.

        Raises
        ------
        DamagedBlock
            Where its index cannot be decoded.
        """
        box = self.layout.grid.file_box(number)
        with self._decoding(box):
            chunks = self.encoder.chunks_left_out(self.file(number))
        return [chunk.shifted(tuple(-start for start in box.start)) for chunk in chunks]

    @contextmanager
    def _decoding(self, box: Box) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Decoders raise OSError without a number, for what they cannot decode.
            if is_shortage(error) or (isinstance(error, OSError) and error.errno is not None):
                raise
            raise DamagedBlock(
                f"{self.key.store}/{self.key.path}: what is stored in {box.start} to {box.stop} "
                f"cannot be decoded ({type(error).__name__}: {error}); remove or restore its files"
            ) from error

    def _paths(self, box: Box) -> set[Path]:
        """Return the files of a box and the folders above them, up to the array's."""
        paths: set[Path] = set()
        for number in self.layout.grid.files(box):
            path = self.file(number)
            while path != self.folder and path not in paths:
                paths.add(path)
                path = path.parent
        return paths


@dataclass(frozen=True)
class OpenArray(ReadableArray):
    """An array of a store that was taken."""

    store: Store


def open_store(
    root: Path,
    key: str,
    *,
    file_mode: int,
    folder_mode: int,
    step: Step = no_step,
    kind: type[Commit] = Commit,
) -> Store:
    """Take a store, which need not exist yet, and return its handle.

    See `consumer.commit.Commit.take` for what must come before anything is read. Tests take one
    of another kind.

    Raises
    ------
    Fenced
        Where another takes it at the same time.
    UnsafePath
        Where a symbolic link stands on the way.
    """
    path = root / key
    refuse_links(_between(root, path))
    commit = kind.take(root, key, file_mode=file_mode, folder_mode=folder_mode, step=step)
    # One that may write would make the store's folders, with modes of its own.
    return Store(key, path, LocalStore(path, read_only=True), commit)


def open_array(
    store: Store,
    entry: ArrayEntry,
    accepts: Callable[[Layout], object] = lambda _layout: None,
    *,
    write_empty_chunks: bool,
    max_block_bytes: int,
) -> OpenArray:
    """Return the array that a message names, to be made with its groups where it does not exist.

    Parameters
    ----------
    accepts : callable
        Raises where an array of that layout, which does not exist, could not take the message's
        tiles.
    max_block_bytes : int
        The largest block that fits the memory budget.

    Raises
    ------
    ArrayMismatch
        Where a group, another array or foreign files stand in the way.
    TooLarge
        Where one block is larger than `max_block_bytes`.
    """
    refuse_links(_between(store.path, store.path / entry.array))
    unmade = NOTHING
    if not _node(store, entry.array):
        layout = new_layout(entry)
        check_block(f"{store.key}/{entry.array}", layout, max_block_bytes)
        accepts(layout)
        _missing_groups(store, entry.array)
        unmade = new_metadata(entry, layout)
    found = _readable(store, entry.array, write_empty_chunks, unmade)
    check_block(f"{store.key}/{entry.array}", found.layout, max_block_bytes)
    return OpenArray(**vars(found), store=store)


def read_array(root: Path, key: ArrayKey) -> ReadableArray | None:
    """Return an array to be read, without taking its store; None where there is none.

    Whoever has the store may change, replace or remove it meanwhile.

    Raises
    ------
    ArrayMismatch
        Where a group or metadata that cannot be read stand there.
    UnsafePath
        Where a symbolic link stands on the way.
    """
    path = root / key.store
    refuse_links([*_between(root, path), *_between(path, path / key.path)])
    store = StoreFolder(key.store, path, LocalStore(path, read_only=True))
    try:
        return _readable(store, key.path, True) if _node(store, key.path) else None
    except FileNotFoundError:
        return None  # removed meanwhile


def _readable(
    store: StoreFolder,
    path: str,
    write_empty_chunks: bool,
    unmade: "Mapping[str, Buffer]" = NOTHING,
) -> ReadableArray:
    metadata = Metadata(store, path, unmade)
    array = _opened(store, path, write_empty_chunks, unmade)
    layout = stored_layout(f"{store.key}/{path}", array)
    key, encoder = ArrayKey(store.key, path), Encoder(array, layout.grid)
    return ReadableArray(key, layout, store.path / path, array, encoder, metadata)


def _stamp(folder: Path) -> tuple[Any, ...] | None:
    for name in _METADATA_FILES:
        with suppress(FileNotFoundError):
            found = (folder / name).stat()
            return name, found.st_ino, found.st_mtime_ns, found.st_size
    return None


def _node(store: StoreFolder, path: str) -> Literal["array", "group", ""]:
    """Return what stands at a path of the store."""
    files = [store.path / path / name for name in _METADATA_FILES]
    refuse_links(files)
    if not any(file.exists() for file in files):
        return ""
    return "array" if isinstance(_open(store, path), zarr.Array) else "group"


def _open(
    store: StoreFolder, path: str, unmade: "Mapping[str, Buffer]" = NOTHING
) -> AnyArray | zarr.Group:
    try:
        source = MemoryStore({metadata_key(path): unmade[path]}) if unmade else store.reader
        return zarr.open(source, path=path, mode="r")
    except Exception as error:
        # zarr does not find what it does not know, and gives no number then.
        unknown = getattr(error, "errno", None) is None and _stamp(store.path / path) is not None
        if is_shortage(error) or (isinstance(error, OSError) and not unknown):
            raise
        raise ArrayMismatch(
            f"{store.key}/{path}: its metadata cannot be read ({type(error).__name__}: {error})"
        ) from error


def _opened(
    store: StoreFolder, path: str, write_empty_chunks: bool, unmade: "Mapping[str, Buffer]"
) -> AnyArray:
    node = _open(store, path, unmade)
    if not isinstance(node, zarr.Array):
        raise ArrayMismatch(f"{store.key}/{path}: an array is wanted, a group is stored")
    config: Any = {"write_empty_chunks": write_empty_chunks, "order": "C"}
    return zarr.Array(zarr.AsyncArray(node.metadata, StorePath(store.reader, path), config))


def _missing_groups(store: Store, path: str) -> list[str]:
    """Return the groups above an array that do not exist yet, outermost first."""
    missing = []
    for group in ("", *parents(path)):
        found = _node(store, group)
        if found == "array":
            raise ArrayMismatch(
                f"{store.key}/{path}: a group is wanted at {group!r}, an array is stored"
            )
        if not found:
            missing.append(group)
        elif (store.path / group / ".zgroup").exists():
            raise ArrayMismatch(
                f"{store.key}/{path}: arrays are created in Zarr format 3, the group {group!r} is "
                "stored in format 2; create the array beforehand"
            )
    # A writer that was fenced while it made folders may have left them.
    if any(files for _, _, files in os.walk(store.path / path)):
        raise Leftovers(
            f"{store.key}/{path}: the folder is not empty, but has no Zarr metadata; remove it"
        )
    return missing


def _between(upper: Path, lower: Path) -> Iterator[Path]:
    """Yield the paths below `upper` down to `lower`."""
    for parent in lower.relative_to(upper).parents:
        if parent != Path():
            yield upper / parent
    yield lower
