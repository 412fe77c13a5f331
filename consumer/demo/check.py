"""Judges a stitched array without the consumer: predicts the input again, stitches it in memory
with plain NumPy, reads the store with plain zarr and compares bit for bit.

Run by its path, in a process of its own. It imports nothing of the package that it judges, and
cuts the tiles by its own arithmetic.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from skimage.restoration import denoise_tv_chambolle


def stitch(
    image: npt.NDArray[np.float32], *, tile: int, overlap: int, weight: float, iterations: int
) -> npt.NDArray[np.float32]:
    """Return the prediction of a CYX image, made tile by tile and stitched in memory."""
    stitched = np.full_like(image, np.nan)
    rows, columns = (_tiles(size, tile, overlap) for size in image.shape[1:])
    for (top, y), (left, x) in itertools.product(rows, columns):
        predicted = denoise_tv_chambolle(  # type: ignore[no-untyped-call] # scikit-image has no types
            image[:, top : top + tile, left : left + tile],
            weight=weight,
            eps=0,
            max_num_iter=iterations,
            channel_axis=0,
        )
        kept = predicted[:, y.start - top : y.stop - top, x.start - left : x.stop - left]
        stitched[:, y, x] = kept
    return stitched


def _tiles(size: int, tile: int, overlap: int) -> list[tuple[int, slice]]:
    """Return where each tile starts along an axis, and the part of the axis that it fills.

    Neighbours meet half the overlap before the earlier one's end.
    """
    starts = [*range(0, size - tile, tile - overlap), size - tile]
    seams = [start + tile - overlap // 2 for start in starts[:-1]]
    parts = itertools.starmap(slice, itertools.pairwise([0, *seams, size]))
    return list(zip(starts, parts, strict=True))


def compare(expected: npt.NDArray[Any], stored: npt.NDArray[Any]) -> dict[str, Any]:
    """Return whether dtype, shape and every byte are equal, and otherwise how they differ.

    Bytes are compared, not numbers: NaN equals the same NaN, and 0.0 is not -0.0.
    """
    verdict = {"identical": False, "dtype": str(stored.dtype), "shape": list(stored.shape)}
    if expected.dtype != stored.dtype or expected.shape != stored.shape:
        return verdict
    differing = int(np.any(_voxel_bytes(expected) != _voxel_bytes(stored), axis=1).sum())
    return verdict | {"identical": differing == 0, "differing_voxels": differing}


def _voxel_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).reshape(flat.size, array.dtype.itemsize)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdict as JSON; return 0 where the store is identical, otherwise 1."""
    options = _options(arguments)
    expected = stitch(
        np.load(options.image),
        tile=options.tile,
        overlap=options.overlap,
        weight=options.weight,
        iterations=options.iterations,
    )
    if options.save is not None:
        np.save(options.save, expected)
    array = zarr.open_group(options.store, mode="r")[options.array]
    verdict = compare(expected, np.asarray(array))
    print(json.dumps(verdict))
    return 0 if verdict["identical"] else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare a stitched array with its input.")
    parser.add_argument("store", type=Path, help="folder of the Zarr store")
    parser.add_argument("array", help="path of the array in the store")
    parser.add_argument("image", type=Path, help=".npy file of the input, CYX, float32")
    parser.add_argument("--tile", type=int, default=256, help="height and width, voxels")
    parser.add_argument("--overlap", type=int, default=48, help="of neighbouring tiles, voxels")
    parser.add_argument("--weight", type=float, default=0.1, help="strength of the denoising")
    parser.add_argument("--iterations", type=int, default=60, help="steps of the denoising")
    parser.add_argument("--save", type=Path, help="keep the stitch in memory as this .npy file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
