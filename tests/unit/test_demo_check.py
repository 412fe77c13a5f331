"""The demo's checker sees one wrong bit, and knows nothing of the consumer that it judges."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

import consumer.demo
from consumer.demo.check import compare, stitch
from consumer.demo.producer import predicted_tiles
from consumer.tiling import cuts

CHECK = Path(consumer.demo.__file__).with_name("check.py")
ARRAY = "g/denoised"
TILE, OVERLAP, WEIGHT, ITERATIONS = 32, 8, 0.1, 3

Image = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """An input file and the store that is to be judged against it."""

    image: Path
    store: Path

    def array(self) -> Any:
        return zarr.open_group(self.store, mode="r+")[ARRAY]

    def judge(self) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [
                *(sys.executable, "-P", CHECK, self.store, ARRAY, self.image),
                *("--tile", str(TILE), "--overlap", str(OVERLAP)),
                *("--weight", str(WEIGHT), "--iterations", str(ITERATIONS)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A store with what the producer's tiles make, written by plain zarr."""
    image = noise(70, 90)
    found = Case(tmp_path / "input.npy", tmp_path / "out.zarr")
    np.save(found.image, image)
    zarr.create_group(found.store).create_array(
        ARRAY, data=pasted(image), chunks=(1, 16, 16), shards=(1, 32, 32)
    )
    return found


def noise(height: int, width: int) -> Image:
    return np.random.default_rng(1).random((3, height, width), dtype=np.float32)


def pasted(image: Image) -> Image:
    """The producer's tiles, put where their entries say."""
    whole = np.full_like(image, np.nan)
    for tile in predicted_tiles(
        image, tile=TILE, overlap=OVERLAP, weight=WEIGHT, iterations=ITERATIONS
    ):
        top, left = tile.entry["crop_coords"]
        height, width = tile.entry["crop_size"]
        y, x = tile.entry["stitch_coords"]
        crop = tile.values[:, top : top + height, left : left + width]
        whole[:, y : y + height, x : x + width] = crop
    return whole


def test_a_store_with_every_tile_in_place_is_identical(case: Case) -> None:
    code, verdict = case.judge()
    assert (code, verdict["identical"], verdict["differing_voxels"]) == (0, True, 0)


def test_one_flipped_bit_is_seen(case: Case) -> None:
    voxel = np.asarray(case.array()[2, 41, 7], np.float32)
    case.array()[2, 41, 7] = (voxel.view(np.uint32) ^ np.uint32(1)).view(np.float32)
    code, verdict = case.judge()
    assert (code, verdict["identical"], verdict["differing_voxels"]) == (1, False, 1)


def test_a_missing_block_is_seen(case: Case) -> None:
    case.array()[0, :32, :32] = 0
    code, verdict = case.judge()
    assert (code, verdict["identical"]) == (1, False)


def test_equal_numbers_of_another_dtype_are_not_identical(case: Case) -> None:
    wider = case.array()[:].astype("float64")
    zarr.create_group(case.store, overwrite=True).create_array(ARRAY, data=wider)
    code, verdict = case.judge()
    assert (code, verdict["identical"], verdict["dtype"]) == (1, False, "float64")


@pytest.mark.parametrize(
    ("expected", "stored", "identical"),
    [
        pytest.param([np.nan, 1], [np.nan, 1], True, id="the same NaN"),
        pytest.param([0.0, 1], [-0.0, 1], False, id="the other zero"),
        pytest.param([0.0, 1], [0.0, 1, 2], False, id="another shape"),
    ],
)
def test_bytes_are_compared_and_not_numbers(
    expected: list[float], stored: list[float], identical: bool
) -> None:
    verdict = compare(np.array(expected, np.float32), np.array(stored, np.float32))
    assert verdict["identical"] is identical


@pytest.mark.parametrize(
    ("height", "width"),
    [
        pytest.param(32, 32, id="one tile"),
        pytest.param(33, 56, id="one voxel more, and exactly two"),
        pytest.param(100, 131, id="the last tile moved inwards"),
    ],
)
def test_checker_and_producer_agree_on_the_tiles_by_arithmetic_of_their_own(
    height: int, width: int
) -> None:
    image = noise(height, width)
    expected = stitch(image, tile=TILE, overlap=OVERLAP, weight=WEIGHT, iterations=ITERATIONS)
    assert compare(expected, pasted(image))["identical"]


def test_crops_cover_an_axis_once() -> None:
    parts = [
        range(cut.start + cut.crop, cut.start + cut.crop + cut.size) for cut in cuts(500, 256, 48)
    ]
    assert [voxel for part in parts for voxel in part] == list(range(500))


def test_the_checker_imports_nothing_of_the_consumer() -> None:
    program = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='check'); "
        "print([name for name in sys.modules if name.partition('.')[0] == 'consumer'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, CHECK], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
