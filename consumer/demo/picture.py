"""Draws what the demo did: the input, what the consumer stitched, and whether it is exact."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

_ZOOM = 256
_FRAME = "#ffd400"


def draw(
    path: Path,
    *,
    noisy: npt.NDArray[np.float32],
    stitched: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float32],
    identical: bool,
    seams: tuple[list[int], list[int]],
    title: str,
) -> None:
    """Write a PNG of two rows: the whole image, and a part of it around a seam.

    Parameters
    ----------
    path : Path
        Of the PNG file.
    noisy, stitched, expected : ndarray
        The input, what the store holds and the stitch in memory, (3, height, width).
    identical : bool
        The checker's verdict on the last two.
    seams : pair of lists
        Rows and columns where a crop begins, voxels.
    title : str
        Over the whole figure.
    """
    figure = Figure(figsize=(15, 10), layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=16)
    grid = figure.subplots(2, 3)
    zoom = _zoom(noisy.shape, seams)
    _picture(grid[0, 0], noisy, "Input: noisy image")
    _picture(grid[0, 1], stitched, "Stitched by the consumer, read from Zarr")
    _difference(figure, grid[0, 2], stitched, expected, identical)
    _frame(grid[0, 0], zoom)
    _frame(grid[0, 1], zoom)
    _picture(grid[1, 0], noisy[:, *zoom], "Input, framed part enlarged", zoom)
    _picture(grid[1, 1], stitched[:, *zoom], "Stitched, same part; ticks mark the seams", zoom)
    _removed(figure, grid[1, 2], noisy[:, *zoom], stitched[:, *zoom], zoom)
    for axes in grid[1]:
        _tick_seams(axes, zoom, seams)
    figure.savefig(path, dpi=110)


def _zoom(shape: tuple[int, ...], seams: tuple[list[int], list[int]]) -> tuple[slice, slice]:
    """Return a window around the first crossing of seams, where there is one."""
    return (_window(shape[1], seams[0]), _window(shape[2], seams[1]))


def _window(size: int, seams: list[int]) -> slice:
    width = min(_ZOOM, size)
    start = min(max(0, seams[:2][-1] - width // 2), size - width)
    return slice(start, start + width)


def _extent(zoom: tuple[slice, slice]) -> tuple[int, int, int, int]:
    y, x = zoom
    return (x.start, x.stop, y.stop, y.start)


def _picture(
    axes: Axes,
    image: npt.NDArray[np.float32],
    title: str,
    zoom: tuple[slice, slice] | None = None,
) -> None:
    extent = None if zoom is None else _extent(zoom)
    axes.imshow(np.clip(np.moveaxis(image, 0, -1), 0, 1), extent=extent)
    axes.set_title(title)


def _difference(
    figure: Figure,
    axes: Axes,
    stitched: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float32],
    identical: bool,
) -> None:
    difference = np.abs(stitched - expected).max(axis=0)
    most = float(difference.max())
    shown = axes.imshow(difference, cmap="inferno", vmin=0, vmax=most or 1)
    verdict = "bit for bit identical" if identical else "NOT identical"
    axes.set_title("Difference to the stitch in memory")
    axes.text(
        *(0.5, 0.5, f"max |difference| = {most:g}\n{verdict}"),
        transform=axes.transAxes,
        ha="center",
        color="white",
        fontsize=16,
        bbox={"facecolor": "black", "alpha": 0.6},
    )
    _bar(figure, shown, axes, "|Zarr - memory|, largest of the channels")


def _removed(
    figure: Figure,
    axes: Axes,
    noisy: npt.NDArray[np.float32],
    stitched: npt.NDArray[np.float32],
    zoom: tuple[slice, slice],
) -> None:
    removed = (noisy - stitched).mean(axis=0)
    most = float(np.abs(removed).max())
    shown = axes.imshow(removed, cmap="RdBu_r", vmin=-most, vmax=most, extent=_extent(zoom))
    axes.set_title("What the prediction removed, same part")
    _bar(figure, shown, axes, "input - stitched, mean of the channels")


def _bar(figure: Figure, shown: Any, axes: Axes, label: str) -> None:
    figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.02, label=label)


def _frame(axes: Axes, zoom: tuple[slice, slice]) -> None:
    left, right, bottom, top = _extent(zoom)
    axes.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=_FRAME, lw=2)
    )


def _tick_seams(axes: Axes, zoom: tuple[slice, slice], seams: tuple[list[int], list[int]]) -> None:
    y, x = zoom
    axes.set_yticks([seam for seam in seams[0] if y.start <= seam < y.stop])
    axes.set_xticks([seam for seam in seams[1] if x.start <= seam < x.stop])
