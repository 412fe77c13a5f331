"""`consumer publish`: an image in a file ends in the array as it is."""

import json
import os
import re
import shutil
import signal
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
from consumer.tensors import read
from consumer.testing import free_port
from consumer.tiling import tile_places
from harness import Channel


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


def publish(
    channel: Channel, *arguments: str, host: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run `consumer publish …`."""
    access = ["--hosts", host or channel.broker.host, "--topology-prefix", channel.prefix]
    words = [sys.executable, "-m", "consumer.cli", "publish", *access, *arguments]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=120, check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("TILES_")} | environment,
    )  # fmt: skip


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
        producer.wait_delivered(f"{producer.prefix}.00")
        assert consumer.stop() == 0

    assert done.stderr.startswith("published ")
    stored = zarr.open_array(tmp_path / "root/p/a.zarr", path="x", mode="r")
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored[:], image)


# -- what is missing ----------------------------------------------------------------------------

OPTIONS = ["--store", "p/a.zarr", "--array", "x", "--tile", "64", "--overlap", "8"]


def written(make_consumer: MakeConsumer, producer: Channel) -> None:
    """Have what is in the queue written."""
    with make_consumer() as consumer:
        producer.wait_delivered(f"{producer.prefix}.00")
        assert consumer.stop() == 0


def take(channel: Channel, said: str) -> list[tuple[Any, bytes]]:
    """Take all messages of the tiles that the command says it has published."""
    published = re.search(r"^published (\d+) tiles in ", said, re.MULTILINE)
    assert published is not None, said
    found: list[tuple[Any, bytes]] = []
    # A queue with a single active consumer is not to be asked for one message.
    for method, properties, body in channel.channel.consume(
        f"{channel.prefix}.00", auto_ack=True, inactivity_timeout=120
    ):
        assert method is not None, "a message"
        found.append((properties, body))
        if len(tiles_of(found)) == int(published[1]):
            break
    channel.channel.cancel()
    return found


def tiles_of(messages: list[tuple[Any, bytes]]) -> list[dict[str, Any]]:
    """Return what messages say of their tiles."""
    return [tile for _, body in messages for tile in json.loads(read(body)[1]["tiles"])["tiles"]]


@pytest.mark.parametrize(
    ("save", "shape"),
    [
        pytest.param(save_zarr, (2, 3, 300, 200), id="SCYX"),
        pytest.param(save_numpy, (5, 6, 300, 200), id="CZYX"),
        pytest.param(save_numpy, (900, 1100), id="YX"),
    ],
)
def test_only_tiles_that_are_missing_are_published_again(
    make_consumer: MakeConsumer,
    producer: Channel,
    tmp_path: Path,
    save: Callable[[Path, npt.NDArray[Any]], str],
    shape: tuple[int, ...],
) -> None:
    image = np.random.default_rng(0).integers(1, 200, shape).astype("float32")
    source, root = save(tmp_path, image), str(tmp_path / "root")
    written(make_consumer, producer)  # which declares the queue
    done = publish(producer, source, *OPTIONS)
    assert done.returncode == 0, done.stderr
    messages = take(producer, done.stderr)
    assert len(messages) > 3
    for properties, body in messages[:1] + messages[3:]:
        producer.channel.basic_publish(producer.prefix, "p/a.zarr", body, properties)
    written(make_consumer, producer)

    done = publish(producer, source, *OPTIONS, "--missing-from", root)

    lost, count = tiles_of(messages[1:3]), len(tiles_of(messages))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == f"{len(lost)} of {count} tiles are left"
    assert done.stderr.splitlines()[1].startswith(f"published {len(lost)} tiles in ")
    again = take(producer, done.stderr)
    assert tiles_of(again) == lost
    for properties, body in again:
        producer.channel.basic_publish(producer.prefix, "p/a.zarr", body, properties)
    written(make_consumer, producer)
    stored = zarr.open_array(tmp_path / "root/p/a.zarr", path="x", mode="r")
    np.testing.assert_array_equal(stored[:], image)

    # Nobody is asked to take nothing.
    nowhere = f"127.0.0.1:{free_port()}"
    done = publish(producer, source, *OPTIONS, "--missing-from", root, host=nowhere)
    assert (done.returncode, done.stderr) == (0, "nothing is missing\n")
    done = publish(
        producer, source, *OPTIONS, "--missing-from", host=nowhere, TILES_OUTPUT_ROOT=root
    )
    assert (done.returncode, done.stderr) == (0, "nothing is missing\n")


@pytest.fixture
def stored_image(make_consumer: MakeConsumer, producer: Channel, tmp_path: Path) -> str:
    """The path of an image of which everything is written."""
    source = save_numpy(tmp_path, np.ones((100, 70), "uint8"))
    written(make_consumer, producer)
    assert publish(producer, source, *OPTIONS).returncode == 0
    written(make_consumer, producer)
    return source


def no_ledger(root: Path) -> str:
    """Remove the ledgers."""
    shutil.rmtree(root / ".tiles")
    return f"no ledger of p/a.zarr/x below {root}: publishing all"


def no_array(root: Path) -> str:
    """Remove the store."""
    shutil.rmtree(root / "p/a.zarr")
    return "p/a.zarr/x was removed or replaced since its ledger was written: publishing all"


def a_damaged_segment(root: Path) -> str:
    """Damage a ledger."""
    (root / ".tiles/p/a.zarr/ledger/x/.blocks-00000.json").write_bytes(b"{}")
    return (
        "consumer: p/a.zarr/x: .blocks-00000.json is damaged: it does not begin with a checksum; "
        "what it held is published again"
    )


@pytest.mark.parametrize("change", [no_ledger, no_array, a_damaged_segment])
def test_where_nothing_is_known_to_be_written_all_tiles_are_published(
    producer: Channel, tmp_path: Path, stored_image: str, change: Callable[[Path], str]
) -> None:
    line = change(tmp_path / "root")

    done = publish(producer, stored_image, *OPTIONS, "--missing-from", str(tmp_path / "root"))

    assert done.returncode == 0
    assert done.stderr.splitlines()[:2] == [line, "4 of 4 tiles are left"]
    assert len(tiles_of(take(producer, done.stderr))) == 4


def test_what_the_consumer_would_park_is_not_published(
    producer: Channel, tmp_path: Path, stored_image: str
) -> None:
    other = save_numpy(tmp_path / "root", np.ones((100, 71), "uint8"))
    shape, source = ["--missing-from", str(tmp_path / "root")], Path(stored_image).as_uri()

    done = publish(producer, other, *OPTIONS, *shape)

    remedy = (
        "give the image and the options that it was published with, or leave --missing-from out "
        "after consumer reset p/a.zarr/x\n"
    )
    assert done.returncode == 2
    line = f"consumer: shape [100, 71] is not [100, 70], which p/a.zarr/x has: {remedy}"
    assert done.stderr == line
    np.save(other, np.ones((100, 70), "uint8"))
    done = publish(producer, other, *OPTIONS, *shape)
    line = f"consumer: source {Path(other).as_uri()!r} is not {source!r}, which p/a.zarr/x has: "
    assert done.stderr == line + remedy


# -- mistakes -----------------------------------------------------------------------------------

REFUSED = {
    "number": (
        ["IMAGE", "--tile", "a"],
        "argument --tile: 'a' is not whole numbers separated by commas, e.g. 1,256,256; see "
        "consumer publish --help",
    ),
    "no root": (
        ["IMAGE", "--overlap", "2", "--missing-from"],
        "--missing-from needs ROOT or TILES_OUTPUT_ROOT: output_root: Field required; see consumer "
        "publish --help",
    ),
    "no such root": (
        ["IMAGE", "--overlap", "2", "--missing-from", "/nowhere"],
        "--missing-from: there is no folder /nowhere",
    ),
    "no file": (["nowhere.npy"], "there is no file nowhere.npy"),
    "no image": ([__file__], f"{__file__} is none of .npy, .tif, .tiff and .zarr"),
    "axes": (["IMAGE", "--axes", "XY"], "axes 'XY' of IMAGE must be some of STCZYX in that order"),
    "too few axes": (["IMAGE", "--axes", "CYX"], "axes 'CYX' do not fit IMAGE, whose shape is"),
    "overlap": (
        ["IMAGE", "--tile", "4", "--overlap", "4"],
        "overlap [4, 4] must be below the tile [4, 4]",
    ),
    "no tile": (["IMAGE", "--tile", "0"], "tile [0, 0] must be at least 1 on each axis"),
    "no voxels": (["EMPTY"], "EMPTY, whose shape is [0, 8], has no voxels"),
    "tile": (["IMAGE", "--tile", "1,2,3"], "tile [1, 2, 3] must be one number or 2, (Z)YX"),
}


@pytest.mark.parametrize(("arguments", "line"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_told_in_one_line(
    producer: Channel, tmp_path: Path, arguments: list[str], line: str
) -> None:
    image, empty = save_numpy(tmp_path, np.zeros((8, 8))), str(tmp_path / "empty.npy")
    np.save(empty, np.zeros((0, 8)))
    given = [word.replace("IMAGE", image).replace("EMPTY", empty) for word in arguments]

    done = publish(producer, *given, "--store", "a.zarr")

    assert done.returncode == 2
    assert line.replace("IMAGE", image).replace("EMPTY", empty) in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_image_no_larger_than_the_usual_overlap_is_one_tile(
    producer: Channel, tmp_path: Path
) -> None:
    image = save_numpy(tmp_path, np.zeros((20, 300)))

    done = publish(
        producer, image, "--store", "a.zarr", "--timeout-s", "0.1", host=f"127.0.0.1:{free_port()}"
    )

    assert done.stderr.splitlines()[-1].startswith("consumer: no connection to RabbitMQ")


def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(producer: Channel, tmp_path: Path) -> None:
    image = save_numpy(tmp_path, np.zeros((8, 8)))
    words = [sys.executable, "-m", "consumer.cli", "publish", image, "--store", "a.zarr"]
    words += ["--hosts", f"127.0.0.1:{free_port()}", "--timeout-s", "3600"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "connection lost or refused" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.stderr.read().splitlines()

    assert process.returncode == 130
    assert said[-1] == "consumer: interrupted; --missing-from ROOT goes on with what is not written"
    assert "Traceback" not in "".join(said)


def test_crops_cover_the_image_once() -> None:
    filled = np.zeros((5, 100, 70), int)
    for place in tile_places(filled.shape, (4, 32, 32), (2, 8, 0)):
        start, size = place.stitch_coords, place.crop_size
        filled[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] += 1

    assert (filled == 1).all()
