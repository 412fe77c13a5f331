"""What becomes of CAREamics' regions: which array, of which axes, sizes, chunks and shards."""

import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from consumer.careamics import PublishTiles
from consumer.contract import build
from consumer.errors import UnusableSettings
from regions import region

ROOT = Path("/mnt/out")
SPEC = {"sample_idx": 0, "crop_coords": (0, 0), "crop_size": (64, 64), "stitch_coords": (0, 0)}
ALL = pytest.mark.parametrize("generation", ["older", "middle", "newer"])
SINCE_0_1 = pytest.mark.parametrize("generation", ["middle", "newer"])


def array_of(
    strategy: PublishTiles | None = None,
    dirpath: Path = ROOT / "run1",
    *,
    generation: str = "newer",
    axes: str = "YX",
    shape: Sequence[int] = (200, 300),
    channels: int = 1,
    **told: Any,
) -> dict[str, Any]:
    """Return what is said of the array of one region."""
    space = (8, 64, 64) if "Z" in axes else (64, 64)
    data = np.zeros((channels, *space), "float32")
    made = region(generation, data, axes, shape, {**SPEC, **told.pop("spec", {})}, **told)
    array = (strategy or PublishTiles(ROOT)).array_of(dirpath, made)
    place = {"stitch_coords": [0] * len(space)}
    if {"S", "T"} & set(array["axes"]):
        place["sample_idx"] = 0  # type: ignore[assignment]
    build({**array, "tiles": [place]})
    return array


def layout(**told: Any) -> tuple[Any, ...]:
    """Return axes, shape, chunks and shards of the array of one region."""
    array = array_of(**told)
    shards = array.get("shards")
    sizes = (array["shape"], array["chunks"], shards)
    return (array["axes"], *(None if size is None else tuple(size) for size in sizes))


# -- axes and sizes -----------------------------------------------------------------------------


@ALL
def test_an_array_is_like_its_source(generation: str) -> None:
    found = layout(
        generation=generation,
        axes="SCYX",
        shape=(3, 2, 200, 300),
        chunks=(1, 1, 32, 64),
        shards=(1, 2, 64, 128),
        channels=2,
    )

    assert found == ("SCYX", (3, 2, 200, 300), (1, 1, 32, 64), (1, 2, 64, 128))


@ALL
def test_t_alone_stays_t(generation: str) -> None:
    found = layout(
        generation=generation,
        axes="TYX",
        shape=(5, 200, 300),
        chunks=(1, 32, 32),
        shards=(5, 64, 64),
    )

    assert found == ("TYX", (5, 200, 300), (1, 32, 32), (5, 64, 64))


@SINCE_0_1
def test_s_and_t_are_restored(generation: str) -> None:
    found = layout(
        generation=generation, axes="STYX", shape=(2, 5, 200, 300), chunks=(1, 5, 32, 32)
    )

    assert found == ("STYX", (2, 5, 200, 300), (1, 5, 32, 32), None)


def test_s_and_t_stay_merged_where_only_their_product_is_known() -> None:
    found = layout(
        generation="older",
        axes="STYX",
        shape=(2, 5, 200, 300),
        chunks=(1, 5, 32, 32),
        shards=(2, 5, 64, 64),
    )

    assert found == ("SYX", (10, 200, 300), (5, 32, 32), (10, 64, 64))


@SINCE_0_1
def test_the_axes_come_in_the_contracts_order(generation: str) -> None:
    found = layout(
        generation=generation,
        axes="YXCT",
        shape=(200, 300, 2, 5),
        chunks=(32, 64, 2, 1),
        shards=(64, 128, 2, 5),
        channels=2,
    )

    assert found == ("TCYX", (5, 2, 200, 300), (1, 2, 32, 64), (5, 2, 64, 128))


def test_the_target_axes_decide_the_order_too() -> None:
    found = layout(axes="SCYX", target_axes="CSYX", shape=(3, 1, 200, 300))

    assert found == ("SCYX", (3, 1, 200, 300), (1, 1, 128, 128), None)


@ALL
def test_an_older_region_in_another_order_is_read_by_its_axes(generation: str) -> None:
    found = layout(
        generation=generation, axes="CTZYX", shape=(2, 5, 9, 200, 300), channels=2, chunks=(1,) * 5
    )

    assert found == ("TCZYX", (5, 2, 9, 200, 300), (1,) * 5, None)


@ALL
def test_an_image_that_is_no_zarr_gets_careamics_own_chunks(generation: str) -> None:
    found = layout(
        generation=generation, axes="SZYX", shape=(2, 20, 100, 300), source="/data/d.tif"
    )

    assert found == ("SZYX", (2, 20, 100, 300), (1, 1, 100, 128), None)


# -- channels -----------------------------------------------------------------------------------


@ALL
def test_the_model_decides_how_many_channels_there_are(generation: str) -> None:
    found = layout(
        generation=generation, axes="CYX", shape=(3, 200, 300), chunks=(1, 32, 32), channels=2
    )

    assert found == ("CYX", (2, 200, 300), (1, 32, 32), None)


@ALL
@pytest.mark.parametrize(
    ("chunk", "shard", "channels", "wanted"),
    [
        pytest.param(3, 3, 1, (1, 1), id="a chunk of all, one left"),
        pytest.param(3, 6, 2, (2, 2), id="two chunks in a shard, less than one left"),
        pytest.param(2, 6, 3, (2, 4), id="three chunks in a shard, two left"),
        pytest.param(2, 2, 6, (2, 2), id="more channels than before"),
        pytest.param(1, 6, 6, (1, 6), id="as many as before"),
    ],
)
def test_chunks_and_shards_hold_no_more_channels_than_there_are(
    generation: str, chunk: int, shard: int, channels: int, wanted: tuple[int, int]
) -> None:
    _, _, chunks, shards = layout(
        generation=generation,
        axes="CYX",
        shape=(6, 200, 300),
        chunks=(chunk, 32, 32),
        shards=(shard, 64, 64),
        channels=channels,
    )

    assert (chunks, shards) == ((wanted[0], 32, 32), (wanted[1], 64, 64))


def test_target_axes_with_c_add_it() -> None:
    found = layout(
        axes="YX",
        target_axes="CYX",
        shape=(200, 300),
        chunks=(32, 32),
        shards=(64, 64),
        channels=3,
    )

    assert found == ("CYX", (3, 200, 300), (1, 32, 32), (1, 64, 64))


def test_target_axes_without_c_drop_it() -> None:
    found = layout(axes="CYX", target_axes="YX", shape=(3, 200, 300), chunks=(3, 32, 32))

    assert found == ("YX", (200, 300), (32, 32), None)


@pytest.mark.parametrize("generation", ["older", "middle"])
def test_without_target_axes_several_channels_add_c(generation: str) -> None:
    found = layout(
        generation=generation, axes="SYX", shape=(4, 200, 300), chunks=(1, 32, 32), channels=2
    )

    assert found == ("SCYX", (4, 2, 200, 300), (1, 1, 32, 32), None)


def test_several_channels_without_a_place_for_them_are_refused() -> None:
    with pytest.raises(ValueError, match="returns 2 channels, and the target axes 'YX' have no C"):
        array_of(channels=2)


def test_target_axes_that_lose_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="target axes 'CYX' must be the axes 'SYX'"):
        array_of(axes="SYX", target_axes="CYX", shape=(4, 200, 300))


# -- what a region does not tell, and its source does ----------------------------------------------


def source_of(folder: Path, shards: tuple[int, ...] | None = None, **options: Any) -> str:
    """Create an array of axes STYX; return its URI."""
    group = zarr.create_group(folder / "d.zarr", **options)
    group.create_array(
        "g/img", shape=(2, 4, 200, 300), chunks=(1, 2, 64, 64), shards=shards, dtype="uint8"
    )
    return f"file://{folder}/d.zarr/g/img"


@pytest.mark.parametrize("told", [None, (1, 2, 64, 64)], ids=["nothing told", "chunks told"])
@pytest.mark.parametrize(
    ("generation", "chunks", "shards"),
    [
        ("older", (2, 64, 64), (8, 128, 128)),
        ("middle", (1, 2, 64, 64), (2, 4, 128, 128)),
        ("newer", (1, 2, 64, 64), (2, 4, 128, 128)),
    ],
)
def test_what_was_lost_on_the_way_is_read_from_the_source(
    generation: str,
    chunks: tuple[int, ...],
    shards: tuple[int, ...],
    told: tuple[int, ...] | None,
    tmp_path: Path,
) -> None:
    source = source_of(tmp_path, (2, 4, 128, 128))

    _, _, *found = layout(
        generation=generation, axes="STYX", shape=(2, 4, 200, 300), chunks=told, source=source
    )

    assert found == [chunks, shards]


def test_a_source_without_shards_has_none(tmp_path: Path) -> None:
    _, _, *found = layout(axes="STYX", shape=(2, 4, 200, 300), source=source_of(tmp_path))

    assert found == [(1, 2, 64, 64), None]


def test_a_source_in_zarr_v2_tells_nothing_more(tmp_path: Path) -> None:
    source = source_of(tmp_path, zarr_format=2)

    _, _, *found = layout(axes="STYX", shape=(2, 4, 200, 300), chunks=(1, 1, 9, 9), source=source)

    assert found == [(1, 1, 9, 9), None]


# -- names --------------------------------------------------------------------------------------


def names(*sources: str, base: str | None = None, dirpath: str = "run1") -> list[str]:
    """Return store key and array path of sources in turn, by one strategy."""
    strategy = PublishTiles(ROOT)
    strategy.set_source_base(None if base is None else Path(base))
    arrays = [
        array_of(strategy, ROOT / dirpath, source=source, spec={"data_idx": number})
        for number, source in enumerate(sources)
    ]
    return [f"{array['store']}:{array['array']}" for array in arrays]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("file:///data/d.zarr/g1/img", "run1/d_output.zarr:g1/img"),
        ("file:///data/d.zarr/img", "run1/d_output.zarr:img"),
        ("file:///data/d.zarr/a/b/x/", "run1/d_output.zarr:a/b/x"),
        ("file:///data/d.ome.zarr/0", "run1/d.ome_output.zarr:0"),
        ("file:/data/d.zarr/img", "run1/d_output.zarr:img"),
        ("s3://bucket/d.zarr/img", "run1/d_output.zarr:img"),
        ("/data/d.tif", "run1/d.zarr:0"),
        ("d.czi", "run1/d.zarr:0"),
        ("array", "run1/prediction.zarr:0"),
    ],
)
def test_a_prediction_is_named_after_its_source(source: str, wanted: str) -> None:
    assert names(source) == [wanted]


@pytest.mark.parametrize(
    ("dirpath", "wanted"), [(".", ""), ("a/b", "a/b/"), ("a/../b", "b/"), ("./c/", "c/")]
)
def test_the_store_key_starts_with_dirpath_below_the_root(dirpath: str, wanted: str) -> None:
    assert names("array", dirpath=dirpath) == [f"{wanted}prediction.zarr:0"]


def test_a_relative_dirpath_is_below_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    array = array_of(PublishTiles("out"), Path("out/run1"))

    assert array["store"] == "run1/d_output.zarr"


@pytest.mark.parametrize("dirpath", ["/mnt/other", "/mnt", "/mnt/out/../x", "/mnt/output"])
def test_a_dirpath_outside_the_root_is_refused(dirpath: str) -> None:
    with pytest.raises(ValueError, match=f"dirpath '{dirpath}' is outside output_root '/mnt/out'"):
        array_of(dirpath=Path(dirpath))


@pytest.mark.parametrize("source", ["file:///data/d.zarr", "s3://bucket/d.tif", "/data/d.zarr"])
def test_a_source_without_an_array_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match=f"source '{source}' names no array in a store"):
        array_of(source=source)


def test_sources_below_one_folder_keep_their_folders() -> None:
    sources = ["file:///data/p1/d.zarr/img", "file:///data/p2/d.zarr/img", "file:///data/e.zarr/x"]

    assert names(*sources, base="file:/data") == [
        "run1/p1/d_output.zarr:img",
        "run1/p2/d_output.zarr:img",
        "run1/e_output.zarr:x",
    ]


def test_files_below_one_folder_keep_their_folders() -> None:
    assert names("/data/p1/d.tif", "/data/p2/d.tif", base="/data") == [
        "run1/p1/d.zarr:0",
        "run1/p2/d.zarr:1",
    ]


@pytest.mark.parametrize("base", ["file:/data", "file:/data/d.zarr", "file:/data/d.zarr/g", None])
def test_arrays_of_one_store_stay_in_one_store(base: str | None) -> None:
    assert names("file:///data/d.zarr/g/a", "file:///data/d.zarr/g/b", base=base) == [
        "run1/d_output.zarr:g/a",
        "run1/d_output.zarr:g/b",
    ]


def test_without_a_base_the_second_of_a_stem_gets_its_folder() -> None:
    sources = [f"file:///{folder}/d.zarr/img" for folder in ("p/a", "p/b", "p/a", "q/b", "p/b")]

    assert names(*sources) == [
        "run1/d_output.zarr:img",
        "run1/b/d_output.zarr:img",
        "run1/d_output.zarr:img",
        "run1/q/b/d_output.zarr:img",
        "run1/b/d_output.zarr:img",
    ]


def test_a_base_that_was_given_stands() -> None:
    strategy = PublishTiles(ROOT, source_base="/data")
    strategy.set_source_base(None)

    assert array_of(strategy, source="/data/a/b/d.tif")["store"] == "run1/a/b/d.zarr"


def test_a_name_that_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(ValueError, match=r"would both be stored as 'run1/d_output\.zarr'"):
        names("/d_output.tif", "file:///d.zarr/img")


def test_source_and_run_are_told() -> None:
    array = array_of(PublishTiles(ROOT, run="unet-7"))

    assert (array["source"], array["run"]) == ("file:///data/d.zarr/g1/img", "unet-7")


# -- the strategy itself ------------------------------------------------------------------------


def test_a_copy_by_pickle_names_as_the_first_does() -> None:
    strategy = PublishTiles(ROOT, "rabbit:5672", run="r", topology_prefix="mine")
    array_of(strategy, source="file:///a/d.zarr/img")

    copy = pickle.loads(pickle.dumps(strategy))

    array = array_of(copy, source="file:///b/d.zarr/img")
    assert (array["store"], array["run"]) == ("run1/b/d_output.zarr", "r")


def test_a_wrong_parameter_is_told_at_once() -> None:
    with pytest.raises(UnusableSettings, match="topology_prefix"):
        PublishTiles(ROOT, topology_prefix="a b")


def test_it_loads_neither_careamics_nor_the_service() -> None:
    program = (
        "import sys, consumer.careamics\n"
        "unwanted = {'careamics', 'torch', 'zarr', 'prometheus_client', 'pydantic_settings',\n"
        "            'consumer.settings'}\n"
        "print(sorted(unwanted & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
