"""Images in files: Zarr, TIFF and NumPy, with their axes in the order of the wire contract."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consumer.contract import AXES
from consumer.errors import UnusableSettings

_USUAL_AXES = {2: "YX", 3: "CYX", 4: "CZYX", 5: "TCZYX", 6: "STCZYX"}


@dataclass(frozen=True, slots=True)
class Image:
    """An image: anything that is sliced like an array, and the axes it has."""

    data: Any
    axes: str

    @property
    def sizes(self) -> dict[str, int]:
        """Voxels along each axis."""
        return dict(zip(self.axes, self.data.shape, strict=True))


def open_image(path: str, axes: str | None) -> Image:
    """Return the image of a path; a Zarr array may lie inside its store: `d.zarr/g1/img`.

    Raises
    ------
    UnusableSettings
        Where there is none, or its axes are not those of the wire contract.
    """
    data, found = _opened(path)
    wanted = axes or found or _USUAL_AXES.get(data.ndim, "")
    order = [AXES.find(axis) for axis in wanted]
    if order != sorted(set(order)) or -1 in order or not wanted.endswith("YX"):
        raise UnusableSettings(
            f"axes {wanted!r} of {path} must be some of {AXES} in that order, always with YX; "
            "give --axes, or transpose the image"
        )
    if len(wanted) != data.ndim:
        raise UnusableSettings(
            f"axes {wanted!r} do not fit {path}, whose shape is {list(data.shape)}; give --axes"
        )
    if 0 in data.shape:
        raise UnusableSettings(f"{path}, whose shape is {list(data.shape)}, has no voxels")
    return Image(data, wanted)


def _opened(path: str) -> tuple[Any, str | None]:
    name = Path(path).name.lower()
    if ".zarr" not in path and not Path(path).is_file():
        raise UnusableSettings(f"there is no file {path}")
    try:
        if name.endswith(".npy"):
            return np.load(path, mmap_mode="r"), None
        if name.endswith((".tif", ".tiff")):
            return _tiff(path)
        if ".zarr" in path:
            return _zarr(path)
    except ModuleNotFoundError as error:
        raise UnusableSettings(
            f"{error}; install zarr-tile-consumer[service,images] to read {path}"
        ) from None
    except Exception as error:
        # The libraries raise whatever they stumble over.
        what = str(error) or type(error).__name__
        raise UnusableSettings(f"{path} cannot be read: {what}") from None
    raise UnusableSettings(f"{path} is none of .npy, .tif, .tiff and .zarr")


def _tiff(path: str) -> tuple[Any, str | None]:
    import tifffile  # noqa: PLC0415 - only with the extra

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        axes = series.axes
    data: Any
    try:
        data = tifffile.memmap(path, mode="r")
    except ValueError:  # compressed, or not in one piece
        data = tifffile.imread(path)
    # tifffile's S are an RGB image's samples.
    return data, axes.replace("S", "C")


def _zarr(path: str) -> tuple[Any, str | None]:
    import zarr  # noqa: PLC0415 - only with the extra

    data = zarr.open_array(path, mode="r")
    names = getattr(data.metadata, "dimension_names", None) or ()
    axes = "".join(name.upper() for name in names if name)
    return data, axes if len(axes) == data.ndim and set(axes) <= set(AXES) else None
