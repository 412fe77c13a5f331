"""What CAREamics' regions say of the images that they are of: names, axes, sizes, chunks, shards.

Of any release since 0.0.19, none of which is imported. What becomes of them is
`consumer.careamics`'.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeAlias

from consumer.contract import AXES
from consumer.keys import STORE_SUFFIX

# As CAREamics' own Zarr strategy names and cuts what it writes.
_IN_MEMORY = "array"
_IN_MEMORY_STORE = "prediction"
_OUTPUT = "_output"
_AUTO_CHUNK = 128

# Voxels along each axis.
Sizes: TypeAlias = dict[str, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """How an array is cut; what is not known is absent."""

    chunks: Sizes | None = None
    shards: Sizes | None = None


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prediction goes, and the store, or the file less its suffix, that it is of."""

    source: PurePosixPath
    name: str
    array: str


def place_of(source: str, data_idx: int) -> Place:
    """Return where the prediction of a source goes.

    Raises
    ------
    ValueError
        Where the source is in a store but names no array.
    """
    if source == _IN_MEMORY:
        return Place(PurePosixPath(source), f"{_IN_MEMORY_STORE}{STORE_SUFFIX}", f"{data_idx}")
    path = path_of(source)
    store = next((p for p in (*reversed(path.parents), path) if p.suffix == STORE_SUFFIX), None)
    if store is not None and store != path:
        inside = str(path.relative_to(store))
        return Place(store, f"{store.stem}{_OUTPUT}{STORE_SUFFIX}", inside)
    if store is not None or "://" in source:
        raise ValueError(
            f"source {source!r} names no array in a store; it must be like "
            "file:///folder/name.zarr/group/array"
        )
    return Place(path.with_suffix(""), f"{path.stem}{STORE_SUFFIX}", f"{data_idx}")


def path_of(source: str | Path) -> PurePosixPath:
    """Return the path of a source; CAREamics also tells `file:///a` as `file:/a`."""
    text = str(source)
    if text.startswith("file:"):
        text = "/" + text.removeprefix("file:").lstrip("/")
    return PurePosixPath(text)


def layout_of(region: Region, channels: int, stored: Grid) -> dict[str, Any]:
    """Return axes, shape, chunks and shards of the array of a prediction.

    Parameters
    ----------
    channels : int
        How many the model returned.
    stored : Grid
        What the source itself tells, for what the region does not.

    Raises
    ------
    ValueError
        Where the target axes do not fit the source's, or have no place for the channels.
    """
    sizes = _sizes(region) | {"C": channels}
    axes = _target_axes(region, sizes)
    found: dict[str, Any] = {"axes": axes, "shape": [sizes[axis] for axis in axes]}
    told = region.additional_metadata
    chunks = _by_axis(region, told.get("chunks")) or stored.chunks
    shards = _by_axis(region, told.get("shards")) or stored.shards
    if chunks is None:
        automatic = {axis: min(_AUTO_CHUNK, sizes[axis]) for axis in "YX"}
        return found | {"chunks": [automatic.get(axis, 1) for axis in axes]}
    chunks = chunks | {"C": min(chunks.get("C", 1), channels)}
    if shards is not None:
        filled = -(-channels // chunks["C"]) * chunks["C"]
        shards = shards | {"C": min(shards.get("C", 1), filled)}
        found["shards"] = [shards[axis] for axis in axes]
    return found | {"chunks": [chunks[axis] for axis in axes]}


def stored_grid(region: Region) -> Grid:
    """Return how a region's source is cut, if it is an array in Zarr v3 on this machine."""
    try:
        stored = json.loads(Path(path_of(region.source), "zarr.json").read_bytes())
    except OSError:  # no Zarr v3, or not on this machine
        return Grid()
    outer, codec = stored["chunk_grid"]["configuration"]["chunk_shape"], stored["codecs"][0]
    if codec["name"] != "sharding_indexed":
        return Grid(_merged(region, outer))
    inner = codec["configuration"]["chunk_shape"]
    return Grid(_merged(region, inner), _merged(region, outer))


def _source_axes(region: Region) -> str:
    """Return what the sizes that a region tells of its source are along."""
    if hasattr(region, "original_data_shape"):
        return region.axes
    sample = "T" if "T" in region.axes and "S" not in region.axes else "S"
    return f"{sample}CZYX" if len(region.data_shape) == 5 else f"{sample}CYX"


def _sizes(region: Region) -> Sizes:
    """Return the source's size along each axis."""
    shape = getattr(region, "original_data_shape", region.data_shape)
    return {axis: int(n) for axis, n in zip(_source_axes(region), shape, strict=True)}


def _by_axis(region: Region, told: Sequence[int] | None) -> Sizes | None:
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
            "add it (CAREamics' target_axes or output_axes)"
        )
    return "".join(axis for axis in AXES if axis in target and axis in sizes)


def _merged(region: Region, sizes: Sequence[int]) -> Sizes:
    """Return sizes in the source's order by axis, T merged into S where their product is told."""
    found = dict(zip(region.axes, sizes, strict=True))
    if "T" in found and "T" not in _source_axes(region):
        found["S"] *= found.pop("T")
    return found
