"""Opens and creates stores, groups and arrays, and checks them against what messages say.

Runs in worker threads and keeps nothing: which handles stay open is the owning thread's business.
Metadata is written through the same commit as blocks.
"""

import errno
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import LocalStore, MemoryStore

from consumer.blocks import ArrayKey, StoredArray, shown
from consumer.budget import least_limit
from consumer.commit import Commit, Step, no_step
from consumer.contract import AXES, ArrayEntry, Codec, as_scalar
from consumer.coverage import Box
from consumer.encoder import AnyArray, Encoder
from consumer.errors import ArrayMismatch, DamagedBlock, InvalidMessage, TooLarge
from consumer.files import refuse_links
from consumer.placement import Layout, automatic_chunks, automatic_shards

if TYPE_CHECKING:
    from zarr.abc.buffer import Buffer

DEFAULT_DTYPE = np.dtype("float32")
# Tells an array from one that was removed and made anew under its name. A copy of another's
# attributes may bring that one's: it is replaced.
LEDGER_ID = "tiles_ledger_id"
_CODEC_ARGUMENT = {"transpose": "filters", "bytes": "serializer"}
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


@dataclass(frozen=True)
class ReadableArray(StoredArray):
    """An array that can be read.

    Attributes
    ----------
    folder : Path
        Where it is stored.
    stamp : tuple
        Equal as long as the metadata's file is the one that was read.
    """

    folder: Path
    array: AnyArray
    encoder: Encoder
    stamp: tuple[Any, ...]

    @property
    def ledger_id(self) -> str:
        """What tells it from another array under its name; empty where others made it."""
        found = self.array.attrs.get(LEDGER_ID)
        return found if isinstance(found, str) else ""

    def stands(self) -> bool:
        """Whether the array is still there, and not another under its name."""
        try:
            return _stamp(self.folder) == self.stamp
        except FileNotFoundError:
            return False

    def require(self) -> None:
        """Raise FileNotFoundError where the array's metadata is gone or replaced: it is another."""
        if not self.stands():
            raise FileNotFoundError(errno.ENOENT, "removed or replaced", str(self.folder))

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
        except OSError:
            raise
        except Exception as error:
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
    root: Path, key: str, *, file_mode: int, folder_mode: int, step: Step = no_step
) -> Store:
    """Take a store, which need not exist yet, and return its handle.

    See `consumer.commit.Commit.take` for what must come before anything is read.

    Raises
    ------
    Fenced
        Where another takes it at the same time.
    UnsafePath
        Where a symbolic link stands on the way.
    """
    path = root / key
    refuse_links(_between(root, path))
    commit = Commit.take(root, key, file_mode=file_mode, folder_mode=folder_mode, step=step)
    return Store(key, path, LocalStore(path), commit)


def open_array(
    store: Store,
    entry: ArrayEntry,
    accepts: Callable[[Layout], object] = lambda _layout: None,
    *,
    write_empty_chunks: bool,
    max_block_bytes: int,
) -> OpenArray:
    """Return the array that a message names, created with its groups where it does not exist.

    Parameters
    ----------
    accepts : callable
        Raises where an array of that layout could not take the message's tiles; it is then not
        created.
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
    if not _node(store, entry.array):
        layout = _new_layout(entry)
        _check_block(store, entry, layout, max_block_bytes)
        accepts(layout)
        _create(store, entry, layout, _missing_groups(store, entry.array))
    found = _readable(store, entry.array, write_empty_chunks)
    _check_block(store, entry, found.layout, max_block_bytes)
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


def _readable(store: StoreFolder, path: str, write_empty_chunks: bool) -> ReadableArray:
    folder = store.path / path
    stamp = _stamp(folder)
    array = _opened(store, path, write_empty_chunks)
    layout = _stored_layout(store, path, array)
    encoder = Encoder(array, layout.grid)
    return ReadableArray(ArrayKey(store.key, path), layout, folder, array, encoder, stamp)


def _stamp(folder: Path) -> tuple[Any, ...]:
    files = [folder / name for name in _METADATA_FILES]
    file = next((file for file in files if file.exists()), files[0])
    found = file.stat()
    return file.name, found.st_ino, found.st_mtime_ns, found.st_size


def _node(store: StoreFolder, path: str) -> Literal["array", "group", ""]:
    """Return what stands at a path of the store."""
    files = [store.path / path / name for name in _METADATA_FILES]
    refuse_links(files)
    if not any(file.exists() for file in files):
        return ""
    return "array" if isinstance(_open(store, path), zarr.Array) else "group"


def _open(store: StoreFolder, path: str) -> AnyArray | zarr.Group:
    try:
        return zarr.open(store.reader, path=path, mode="r" if store.reader.read_only else "r+")
    except OSError:
        raise
    except Exception as error:
        raise ArrayMismatch(
            f"{store.key}/{path}: its metadata cannot be read ({type(error).__name__}: {error})"
        ) from error


def _opened(store: StoreFolder, path: str, write_empty_chunks: bool) -> AnyArray:
    node = _open(store, path)
    if not isinstance(node, zarr.Array):
        raise ArrayMismatch(f"{store.key}/{path}: an array is wanted, a group is stored")
    config: Any = {"write_empty_chunks": write_empty_chunks, "order": "C"}
    return zarr.Array(zarr.AsyncArray(node.metadata, node.store_path, config))


def _missing_groups(store: Store, path: str) -> list[str]:
    """Return the groups above an array that do not exist yet, outermost first."""
    missing = []
    for group in ("", *_parents(path)):
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
        raise ArrayMismatch(
            f"{store.key}/{path}: the folder is not empty, but has no Zarr metadata; remove it"
        )
    return missing


def _parents(path: str) -> Iterator[str]:
    segments = path.split("/")
    for depth in range(1, len(segments)):
        yield "/".join(segments[:depth])


def _between(upper: Path, lower: Path) -> Iterator[Path]:
    """Yield the paths below `upper` down to `lower`."""
    for parent in lower.relative_to(upper).parents:
        if parent != Path():
            yield upper / parent
    yield lower


def _new_layout(entry: ArrayEntry) -> Layout:
    dtype = np.dtype(entry.dtype) if entry.dtype else DEFAULT_DTYPE
    chunks = entry.chunks or automatic_chunks(entry.axes, entry.shape)
    shards = entry.shards
    if shards == "auto":
        shards = automatic_shards(entry.axes, entry.shape, chunks, dtype.itemsize)
    if shards and any(shard % chunk for shard, chunk in zip(shards, chunks, strict=True)):
        raise InvalidMessage(
            f"shards {shown(shards)} must be whole multiples of the automatic chunks "
            f"{shown(chunks)}; give chunks too"
        )
    return Layout(entry.axes, entry.shape, dtype, chunks, shards)


def _create(store: Store, entry: ArrayEntry, layout: Layout, groups: list[str]) -> None:
    made: dict[str, Buffer] = {}
    memory = MemoryStore(made)
    for group in groups:
        zarr.create_group(memory, path=group)
    fill = 0 if entry.fill_value is None else entry.fill_value
    zarr.create_array(
        memory,
        name=entry.array,
        shape=layout.shape,
        dtype=layout.dtype,
        chunks=layout.chunks,
        shards=layout.shards,
        fill_value=as_scalar(fill, layout.dtype, "fill_value"),
        attributes={**(entry.attributes or {}), LEDGER_ID: secrets.token_hex(8)},
        dimension_names=list(entry.axes),
        **_codec_arguments(entry.codecs),
    )
    wanted = [f"{path}/zarr.json".lstrip("/") for path in (*groups, entry.array)]
    store.commit.commit({key: [made[key].to_bytes()] for key in wanted})


def _codec_arguments(codecs: tuple[Codec, ...] | None) -> dict[str, Any]:
    """Return zarr's arguments; codecs that are not given stay zarr's defaults."""
    if codecs is None:
        return {}
    arguments: dict[str, Any] = {"compressors": []}
    for codec in codecs:
        plain = codec.model_dump(mode="json", exclude_none=True)
        argument = _CODEC_ARGUMENT.get(codec.name, "compressors")
        if argument == "serializer":
            arguments[argument] = plain
        else:
            arguments.setdefault(argument, []).append(plain)
    return arguments


def _stored_layout(store: StoreFolder, path: str, array: AnyArray) -> Layout:
    where = f"{store.key}/{path}"
    try:
        chunks, shards, dtype = array.chunks, array.shards, np.dtype(array.dtype)
    except (NotImplementedError, TypeError) as error:
        raise ArrayMismatch(f"{where}: a regular chunk grid is wanted ({error})") from error
    if dtype.kind not in "biuf":
        raise ArrayMismatch(f"{where}: the stored dtype {dtype} is not one that tiles can have")
    return Layout(_stored_axes(array), tuple(array.shape), dtype.newbyteorder("="), chunks, shards)


def _stored_axes(array: AnyArray) -> str:
    """Return the axes by the dimensions' names; nothing where the array does not tell."""
    names = getattr(array.metadata, "dimension_names", None) or ()
    letters = "".join(str(name).upper() for name in names)
    return letters if len(letters) == len(array.shape) and set(letters) <= set(AXES) else ""


def _check_block(store: Store, entry: ArrayEntry, layout: Layout, max_block_bytes: int) -> None:
    block = layout.grid.block
    size = math.prod(block) * layout.dtype.itemsize
    if size > max_block_bytes:
        kind = "shard" if layout.shards else "chunk"
        raise TooLarge(
            f"{store.key}/{entry.array}: a {kind} of {shown(block)} has {size} bytes, over the "
            f"{max_block_bytes} that fit the memory budget; choose smaller ones or raise "
            f"TILES_MEMORY_BUDGET_BYTES to at least {least_limit(size)}"
        )
