"""CAREamics' predictions, published instead of written: a write strategy for its callback.

Reads regions as CAREamics hands them over, of any release since 0.0.19, and imports none of it.
Sending is `consumer.publisher`'s, what an array may be `consumer.contract`'s.
"""

import json
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from consumer.contract import AXES
from consumer.endpoint import Endpoint
from consumer.keys import STORE_SUFFIX
from consumer.publisher import TilePublisher

# As CAREamics' own Zarr strategy names and cuts what it writes.
_IN_MEMORY = "array"
_IN_MEMORY_STORE = "prediction"
_OUTPUT = "_output"
_AUTO_CHUNK = 128
_GRIDS = ("chunks", "shards")
_CUT = ("crop_coords", "crop_size")

_Writer = TypeVar("_Writer")


class Region(Protocol):
    """What is read of CAREamics' `ImageRegionData`, decollated.

    Releases since 0.1.0 also have `original_data_shape`, those since 0.3.3 `target_axes`.
    """

    data: Any
    source: Any
    data_shape: Sequence[int]
    axes: str
    region_spec: Mapping[str, Any]
    additional_metadata: Mapping[str, Any]


class PublishTiles:
    """A write strategy for CAREamics' `PredictionWriterCallback` that publishes.

    Each region becomes one tile of the array that CAREamics' Zarr strategy would write, with
    these differences. Arrays of other axis orders are created in the contract's, STCZYX. A model
    that changes the number of channels decides the array's, and a larger channel chunk is
    clamped; regions of releases before 0.3.3, which know no target axes, get C where the model
    returns several channels. Those before 0.1.0 tell S and T only as their product: with both,
    the array has S alone. What was predicted from TIFF or in memory lies below the output root
    as well: `<stem>.zarr` and `prediction.zarr`, with the image's number as the array.

    The store key is `dirpath` relative to `output_root`, then the source's folder relative to
    `source_base`, then `<stem>_output.zarr`. Without `source_base` the first source of a stem
    gets that name, and one of another folder that folder's name in front.

    Publishing goes on after `write_batch` returned. CAREamics does not tell its strategies when
    a prediction ends, so use this as a context manager, `attach` it, or call `flush`; what is left
    at the end of the process is then still waited for. It can be pickled, and has one publisher
    in each process.

    Parameters
    ----------
    output_root : path
        The folder that stands for the consumer's output root: `dirpath` must lie in it.
    broker : str or Endpoint
        As `TilePublisher` takes it.
    run : str, optional
        What names this prediction: a second run into the same array is refused by the consumer.
    source_base : path, optional
        The folder that all sources have in common. Releases since 0.3.3 tell it by themselves.
    **options
        Those of `TilePublisher`.

    Raises
    ------
    UnusableSettings
        With the parameter at fault.
    """

    def __init__(
        self,
        output_root: str | Path,
        broker: str | Endpoint = "localhost:5672",
        *,
        run: str | None = None,
        source_base: str | Path | None = None,
        **options: Any,
    ) -> None:
        self._root = _absolute(output_root)
        self._broker = broker
        self._run = run
        self._options = options
        self._base = self._told_base = None if source_base is None else _path(source_base)
        self._owners: dict[str, PurePosixPath] = {}
        self._grids: dict[str, dict[str, dict[str, int]]] = {}
        self._children: set[int] = set()
        self._publisher = self._new_publisher()

    def set_source_base(self, source_base: Path | None) -> None:
        """Take the folder that all sources have in common; CAREamics tells it at the start."""
        if self._told_base is None:
            self._base = None if source_base is None else _path(source_base)

    def write_batch(self, dirpath: Path, predictions: Iterable[Region]) -> None:
        """Publish regions as tiles; return once they are taken, not once they are confirmed.

        Parameters
        ----------
        dirpath : Path
            Where CAREamics would write.
        predictions : iterable of Region
            Data C(Z)YX, with what CAREamics knows of their source.

        Raises
        ------
        ValueError
            Where `dirpath` is outside the output root, a source has no name that can be used, or
            the axes have no place for the model's channels.
        ParkError, PublishError
            As `TilePublisher.publish`.
        """
        self._close_with_process()
        for region in predictions:
            self._publish(dirpath, region)

    def array_of(self, dirpath: Path, region: Region) -> dict[str, Any]:
        """Return what messages say of the array that a region goes into.

        Returns
        -------
        dict
            Fields of `consumer.contract.ArrayEntry`.

        Raises
        ------
        ValueError
            As `write_batch`.
        """
        place = _place(str(region.source), region.region_spec["data_idx"])
        array = {
            "store": self._store_key(self._folder(dirpath), place),
            "array": place.array,
            "dtype": "float32",
            "source": str(region.source),
            "run": self._run,
        }
        channels = region.data.shape[0]
        told = {key: value for key, value in array.items() if value is not None}
        return told | self._layout(region, channels)

    def attach(self, writer: _Writer) -> _Writer:
        """Make a `PredictionWriterCallback` publish, and return it.

        It keeps this strategy whatever `CAREamist.predict_to_disk` sets, and waits at the end of
        each prediction, on each rank, until every tile is confirmed.
        """
        named: Any = writer
        named.write_strategy = self
        named.set_writing_strategy = self._keep
        named.on_predict_end = self._end
        return writer

    def flush(self) -> None:
        """Return once every tile is confirmed.

        Raises
        ------
        PublishError
            Where nothing was confirmed for `timeout_s`, or waiting does not help.
        """
        self._publisher.flush()

    def close(self) -> None:
        """Wait until every tile is confirmed, and end the connection; the next batch opens it anew.

        Raises
        ------
        PublishError
            Where tiles were not confirmed: they are lost.
        """
        publisher, self._publisher = self._publisher, self._new_publisher()
        publisher.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; where the block raised, that error stands and says what was not published."""
        publisher, self._publisher = self._publisher, self._new_publisher()
        publisher.__exit__(kind, error, trace)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_publisher": None, "_children": set()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._publisher = self._new_publisher()

    def _keep(self, *_: Any, **__: Any) -> None:
        """Stand in for `set_writing_strategy`, which would replace this strategy."""

    def _end(self, *_: Any) -> None:
        self.flush()

    def _new_publisher(self) -> TilePublisher:
        return TilePublisher(self._broker, **self._options)

    def _close_with_process(self) -> None:
        # Before Python 3.12 the children of multiprocessing run no atexit handlers.
        if multiprocessing.parent_process() is not None and os.getpid() not in self._children:
            self._children.add(os.getpid())
            Finalize(None, self.close, exitpriority=0)

    def _folder(self, dirpath: str | Path) -> PurePosixPath:
        try:
            return PurePosixPath(_absolute(dirpath).relative_to(self._root))
        except ValueError:
            raise ValueError(
                f"dirpath {str(dirpath)!r} is outside output_root {str(self._root)!r}; choose a "
                "folder in it"
            ) from None

    def _publish(self, dirpath: Path, region: Region) -> None:
        array, spec = self.array_of(dirpath, region), region.region_spec
        sampled = not {"S", "T"}.isdisjoint(array["axes"])
        cut: dict[str, Any] = {k: _integers(spec[k]) for k in _CUT if k in spec}
        self._publisher.publish(
            array,
            np.asarray(region.data),
            # Without tiling a region is a whole image.
            _integers(spec["stitch_coords" if cut else "coords"]),
            **cut,
            sample_idx=int(spec["sample_idx"]) if sampled else None,
        )

    def _store_key(self, folder: PurePosixPath, place: "_Place") -> str:
        """Return the key of an output store that no source of another folder has."""
        source = place.source
        parents = [part for part in source.parent.parts if part != "/"]
        for count in range(self._depth(source), len(parents) + 1):
            key = str(PurePosixPath(folder, *parents[len(parents) - count :], place.name))
            if self._owners.setdefault(key, source) == source:
                return key
        raise ValueError(
            f"{str(source)!r} and {str(self._owners[key])!r} would both be stored as {key!r}; "
            "rename one, or choose another dirpath"
        )

    def _depth(self, source: PurePosixPath) -> int:
        """How many of the source's folders the store key keeps."""
        if self._base is None or not source.parent.is_relative_to(self._base):
            return 0
        return len(source.parent.relative_to(self._base).parts)

    def _layout(self, region: Region, channels: int) -> dict[str, Any]:
        sizes = _sizes(region) | {"C": channels}
        axes = _target_axes(region, sizes)
        found: dict[str, Any] = {"axes": axes, "shape": [sizes[axis] for axis in axes]}
        told = {name: _by_axis(region, region.additional_metadata.get(name)) for name in _GRIDS}
        chunks, shards = (told[name] or self._stored(region).get(name) for name in _GRIDS)
        if chunks is None:
            automatic = {axis: min(_AUTO_CHUNK, sizes[axis]) for axis in "YX"}
            return found | {"chunks": [automatic.get(axis, 1) for axis in axes]}
        chunks = chunks | {"C": min(chunks.get("C", 1), channels)}
        if shards is not None:
            filled = -(-channels // chunks["C"]) * chunks["C"]
            shards = shards | {"C": min(shards.get("C", 1), filled)}
            found["shards"] = [shards[axis] for axis in axes]
        return found | {"chunks": [chunks[axis] for axis in axes]}

    def _stored(self, region: Region) -> dict[str, dict[str, int]]:
        """Return the chunks and shards that the source itself tells.

        Releases before 0.3.3 lose both on the way, and collating a batch leaves the shards out
        where its first region's source has none.
        """
        source = str(region.source)
        if source not in self._grids:
            self._grids[source] = _stored_grids(region)
        return self._grids[source]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a prediction goes, and the store, or the file less its suffix, that it is of."""

    source: PurePosixPath
    name: str
    array: str


def _place(source: str, data_idx: int) -> _Place:
    if source == _IN_MEMORY:
        return _Place(PurePosixPath(source), f"{_IN_MEMORY_STORE}{STORE_SUFFIX}", f"{data_idx}")
    path = _path(source)
    store = next((p for p in (*reversed(path.parents), path) if p.suffix == STORE_SUFFIX), None)
    if store is not None and store != path:
        inside = str(path.relative_to(store))
        return _Place(store, f"{store.stem}{_OUTPUT}{STORE_SUFFIX}", inside)
    if store is not None or "://" in source:
        raise ValueError(
            f"source {source!r} names no array in a store; it must be like "
            "file:///folder/name.zarr/group/array"
        )
    return _Place(path.with_suffix(""), f"{path.stem}{STORE_SUFFIX}", f"{data_idx}")


def _path(source: str | Path) -> PurePosixPath:
    """Return the path of a source; CAREamics also tells `file:///a` as `file:/a`."""
    text = str(source)
    if text.startswith("file:"):
        text = "/" + text.removeprefix("file:").lstrip("/")
    return PurePosixPath(text)


def _absolute(path: str | Path) -> Path:
    return Path(os.path.normpath(Path(path).absolute()))


def _integers(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _source_axes(region: Region) -> str:
    """Return what the sizes that a region tells of its source are along."""
    if hasattr(region, "original_data_shape"):
        return region.axes
    sample = "T" if "T" in region.axes and "S" not in region.axes else "S"
    return f"{sample}CZYX" if len(region.data_shape) == 5 else f"{sample}CYX"


def _sizes(region: Region) -> dict[str, int]:
    """Return the source's size along each axis."""
    shape = getattr(region, "original_data_shape", region.data_shape)
    return {axis: int(n) for axis, n in zip(_source_axes(region), shape, strict=True)}


def _by_axis(region: Region, told: Sequence[int] | None) -> dict[str, int] | None:
    """Return the source's chunks or shards along each axis."""
    if told is None:
        return None
    axes = _source_axes(region)
    if len(told) < len(axes):  # those before 0.1.0 leave out what the source has not
        axes = "".join(axis for axis in axes if axis in region.axes)
    return {axis: int(n) for axis, n in zip(axes, told, strict=True)}


def _target_axes(region: Region, sizes: Mapping[str, int]) -> str:
    """Return the array's axes, in the contract's order."""
    target: str | None = getattr(region, "target_axes", None)
    if target is None:
        target = region.axes + ("C" if sizes["C"] > 1 else "")
    if set(target) - {"C"} != set(region.axes) - {"C"}:
        raise ValueError(
            f"target axes {target!r} must be the axes {region.axes!r}, with or without C"
        )
    if "C" not in target and sizes["C"] > 1:
        raise ValueError(
            f"the model returns {sizes['C']} channels, and the target axes {target!r} have no C; "
            f"add it (CAREamics' target_axes or output_axes)"
        )
    return "".join(axis for axis in AXES if axis in target and axis in sizes)


def _stored_grids(region: Region) -> dict[str, dict[str, int]]:
    """Return the chunks and shards of a source in Zarr v3 along each axis."""
    try:
        stored = json.loads(Path(_path(region.source), "zarr.json").read_bytes())
    except OSError:  # no Zarr v3, or not on this machine
        return {}
    outer, codec = stored["chunk_grid"]["configuration"]["chunk_shape"], stored["codecs"][0]
    if codec["name"] != "sharding_indexed":
        return {"chunks": _merged(region, outer)}
    inner = codec["configuration"]["chunk_shape"]
    return {"chunks": _merged(region, inner), "shards": _merged(region, outer)}


def _merged(region: Region, sizes: Sequence[int]) -> dict[str, int]:
    """Return sizes in the source's order by axis, T merged into S where their product is told."""
    found = dict(zip(region.axes, sizes, strict=True))
    if "T" in found and "T" not in _source_axes(region):
        found["S"] *= found.pop("T")
    return found
