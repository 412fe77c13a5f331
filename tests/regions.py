"""Regions as CAREamics hands them to a write strategy, of each generation, made by hand."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumer.tiling import tile_places

Values = npt.NDArray[Any]


class Older(NamedTuple):
    """As 0.0.19 to 0.0.22: sizes in SC(Z)YX, T merged into S."""

    data: Values
    source: str
    data_shape: Sequence[int]
    dtype: str
    axes: str
    region_spec: Mapping[str, Any]
    additional_metadata: Mapping[str, Any]


class Middle(NamedTuple):
    """As 0.1.0 to 0.3.2: sizes in the source's order."""

    data: Values
    source: str
    data_shape: Sequence[int]
    dtype: str
    axes: str
    original_data_shape: Sequence[int]
    region_spec: Mapping[str, Any]
    additional_metadata: Mapping[str, Any]


class Newer(NamedTuple):
    """As 0.3.3 and later: the target's axes too."""

    data: Values
    source: str
    data_shape: Sequence[int]
    dtype: str
    axes: str
    target_axes: str
    original_data_shape: Sequence[int]
    region_spec: Mapping[str, Any]
    additional_metadata: Mapping[str, Any]


GENERATIONS = {"older": Older, "middle": Middle, "newer": Newer}


def merged(axes: str, sizes: Sequence[int], *, singletons: bool) -> tuple[int, ...]:
    """Return sizes in SC(Z)YX, T merged into S."""
    found = dict(zip(axes, sizes, strict=True))
    if "T" in found:
        found["S"] = found.get("S", 1) * found.pop("T")
    wanted = [axis for axis in "SCZYX" if axis in found or (singletons and axis in "SC")]
    return tuple(found.get(axis, 1) for axis in wanted)


def region(
    generation: str,
    data: Values,
    axes: str,
    shape: Sequence[int],
    spec: Mapping[str, Any],
    *,
    source: str = "file:///data/d.zarr/g1/img",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    target_axes: str | None = None,
) -> Any:
    """Return a region of a source of `axes`, `shape`, `chunks` and `shards`, in that order."""
    told = {"chunks": chunks, "shards": shards}
    metadata = {key: tuple(sizes) for key, sizes in told.items() if sizes is not None}
    fields = {
        "data": data,
        "source": source,
        "data_shape": merged(axes, shape, singletons=True),
        "dtype": "uint8",
        "axes": axes,
        "region_spec": {"data_idx": 0, "coords": (0, 0), "patch_size": data.shape[1:], **spec},
        "additional_metadata": metadata,
    }
    if generation == "older":
        fields["additional_metadata"] = {
            key: merged(axes, sizes, singletons=False) for key, sizes in metadata.items()
        }
    else:
        fields["original_data_shape"] = tuple(shape)
    if generation == "newer":
        fields["target_axes"] = target_axes or axes
    return GENERATIONS[generation](**fields)


def tiles(
    image: Values, tile: Sequence[int], overlap: Sequence[int]
) -> Iterator[tuple[Values, dict[str, Any]]]:
    """Yield the tiles of an image SC(Z)YX: data C(Z)YX, and CAREamics' words for its place."""
    places = list(tile_places(image.shape[2:], tile, overlap))
    for sample, place in itertools.product(range(image.shape[0]), places):
        space = tuple(slice(a, a + n) for a, n in zip(place.start, tile, strict=True))
        data = image[sample][(slice(None), *space)]
        yield (
            np.ascontiguousarray(data),
            {
                "sample_idx": sample,
                "coords": place.start,
                "crop_coords": place.crop_coords,
                "crop_size": place.crop_size,
                "stitch_coords": place.stitch_coords,
                "total_tiles": image.shape[0] * len(places),
            },
        )
