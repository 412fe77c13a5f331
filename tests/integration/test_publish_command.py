"""`consumer publish`: an image in a file ends in the array as it is."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import zarr

from conftest import MakeConsumer
from consumer.tiling import tile_places
from harness import Channel, wait_until


def save_zarr(path: Path, image: npt.NDArray[Any]) -> str:
    """Save an image as an array in a group."""
    array = zarr.open_group(path / "d.zarr", mode="w").create_array(
        "g/img", data=image, dimension_names=["s", "c", "y", "x"]
    )
    return f"{path}/d.zarr/{array.path}"


def save_tiff(path: Path, image: npt.NDArray[Any]) -> str:
    """Save an image as TIFF."""
    tifffile.imwrite(path / "d.tif", image, metadata={"axes": "ZYX"})
    return str(path / "d.tif")


def save_numpy(path: Path, image: npt.NDArray[Any]) -> str:
    """Save an image as NumPy does."""
    np.save(path / "d.npy", image)
    return str(path / "d.npy")


def publish(channel: Channel, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `consumer publish …`."""
    access = ["--hosts", channel.broker.host, "--topology-prefix", channel.prefix]
    words = [sys.executable, "-m", "consumer.cli", "publish", *arguments, *access]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("save", "shape", "dtype", "tile"),
    [
        pytest.param(save_zarr, (2, 3, 100, 70), "uint16", "32", id="zarr SCYX"),
        pytest.param(save_tiff, (5, 100, 70), "uint8", "4,32,32", id="tiff ZYX"),
        pytest.param(save_numpy, (100, 70), "float32", "128", id="numpy YX"),
    ],
)
def test_an_image_ends_in_the_array_as_it_is(
    make_consumer: MakeConsumer,
    producer: Channel,
    tmp_path: Path,
    save: Callable[[Path, npt.NDArray[Any]], str],
    shape: tuple[int, ...],
    dtype: str,
    tile: str,
) -> None:
    image = np.random.default_rng(0).integers(1, 200, shape).astype(dtype)
    source = save(tmp_path, image)
    with make_consumer() as consumer:
        options = ["--store", "p/a.zarr", "--array", "x", "--tile", tile, "--overlap", "2"]
        done = publish(producer, source, *options)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: producer.depth(f"{producer.prefix}.00") == 0, "an empty queue")
        assert consumer.stop() == 0

    assert done.stderr.startswith("published ")
    stored = zarr.open_array(tmp_path / "root/p/a.zarr", path="x", mode="r")
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored[:], image)


REFUSED = {
    "no file": (["nowhere.npy"], "there is no file nowhere.npy"),
    "no image": ([__file__], f"{__file__} is none of .npy, .tif, .tiff and .zarr"),
    "axes": (["IMAGE", "--axes", "XY"], "axes 'XY' of IMAGE must be some of STCZYX in that order"),
    "too few axes": (["IMAGE", "--axes", "CYX"], "axes 'CYX' do not fit IMAGE, whose shape is"),
    "overlap": (["IMAGE", "--overlap", "256"], "overlap [256, 256] must be below the tile [8, 8]"),
    "tile": (["IMAGE", "--tile", "1,2,3"], "tile [1, 2, 3] must be one number or 2, (Z)YX"),
}


@pytest.mark.parametrize(("arguments", "line"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_told_in_one_line(
    producer: Channel, tmp_path: Path, arguments: list[str], line: str
) -> None:
    image = save_numpy(tmp_path, np.zeros((8, 8)))
    given = [word.replace("IMAGE", image) for word in arguments]

    done = publish(producer, *given, "--store", "a.zarr")

    assert done.returncode == 2
    assert line.replace("IMAGE", image) in done.stderr
    assert done.stderr.count("\n") == 1


def test_crops_cover_the_image_once() -> None:
    filled = np.zeros((5, 100, 70), int)
    for place in tile_places(filled.shape, (4, 32, 32), (2, 8, 0)):
        start, size = place.stitch_coords, place.crop_size
        filled[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] += 1

    assert (filled == 1).all()
