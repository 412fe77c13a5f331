"""CAREamics' regions, made by hand, through a real broker and a real consumer into arrays."""

import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr

from consumer.careamics import PublishTiles
from consumer.errors import PublishError
from consumer.testing import RabbitMQ, free_port
from harness import voxels
from regions import Values, region, tiles
from stitching import Stitching, identical, running

SOURCE = "file:///data/d.zarr/g1/img"
TILE, OVERLAP = (32, 48), (8, 16)


@pytest.fixture
def stitching(broker: RabbitMQ, tmp_path: Path) -> Iterator[Stitching]:
    """A consumer of a queue of its own."""
    with running(broker, tmp_path) as run:
        yield run


def strategy(run: Stitching, **options: Any) -> PublishTiles:
    """Return a strategy for a consumer's queue and root."""
    host = run.producer.broker.host
    return PublishTiles(run.root, host, topology_prefix=run.producer.prefix, **options)


def regions(generation: str, image: Values, axes: str, shape: tuple[int, ...], **told: Any) -> Any:
    """Return the regions of an image SC(Z)YX whose source has these axes and this shape."""
    tile, overlap = ((4, *TILE), (2, *OVERLAP)) if image.ndim == 5 else (TILE, OVERLAP)
    return [
        region(generation, data, axes, shape, spec, **told)
        for data, spec in tiles(image, tile, overlap)
    ]


def stored(run: Stitching, path: str = "run1/d_output.zarr", array: str = "g1/img") -> Values:
    """Return an array's voxels, once every tile that was confirmed is settled."""
    queue = f"{run.producer.prefix}.00"
    run.producer.wait_delivered(queue)
    assert run.consumer.stop() == 0
    assert run.parked() == []
    return np.asarray(zarr.open_array(run.root / path, path=array, mode="r")[:])


@pytest.mark.parametrize(
    ("generation", "axes", "shape", "wanted"),
    [
        pytest.param("newer", "STCYX", (2, 3, 2, 70, 90), (2, 3, 2, 70, 90), id="newer, S and T"),
        pytest.param("middle", "YXT", (70, 90, 6), (6, 70, 90), id="middle, T last"),
        pytest.param("older", "TYX", (6, 70, 90), (6, 70, 90), id="older, T"),
        pytest.param("older", "STYX", (2, 3, 70, 90), (6, 70, 90), id="older, S and T merged"),
        pytest.param("newer", "CZYX", (2, 7, 70, 90), (2, 7, 70, 90), id="newer, Z"),
    ],
)
def test_regions_end_where_their_voxels_were(
    stitching: Stitching,
    generation: str,
    axes: str,
    shape: tuple[int, ...],
    wanted: tuple[int, ...],
) -> None:
    sizes = dict(zip(axes, shape, strict=True))
    samples = sizes.get("S", 1) * sizes.get("T", 1)
    image = voxels((samples, *(sizes.get(a, 1) for a in "CZYX" if a != "Z" or "Z" in axes)))

    with strategy(stitching) as publishing:
        for made in regions(generation, image, axes, shape, chunks=(16,) * len(axes)):
            publishing.write_batch(stitching.root / "run1", [made])

    identical(stored(stitching), image.reshape(wanted))


def test_a_whole_image_is_one_tile(stitching: Stitching) -> None:
    image = voxels((1, 1, 70, 90))
    made = region("newer", image[0], "YX", (70, 90), {"sample_idx": 0, "coords": (0, 0)})

    with strategy(stitching) as publishing:
        publishing.write_batch(stitching.root / "run1", [made])

    identical(stored(stitching), image[0, 0])


def test_values_of_half_precision_are_stored_as_float32(stitching: Stitching) -> None:
    half = np.linspace(0, 1, 70 * 90, dtype="float16").reshape(1, 1, 70, 90)

    with strategy(stitching) as publishing:
        publishing.write_batch(stitching.root / "run1", regions("newer", half, "YX", (70, 90)))

    identical(stored(stitching), half[0, 0].astype("float32"))


def test_it_publishes_again_after_it_was_closed(stitching: Stitching) -> None:
    image = voxels((2, 1, 70, 90))
    made = regions("newer", image, "SYX", (2, 70, 90))
    publishing = strategy(stitching)

    for half in (made[: len(made) // 2], made[len(made) // 2 :]):
        with publishing:
            publishing.write_batch(stitching.root / "run1", half)

    identical(stored(stitching), image[:, 0])


def _child(publishing: PublishTiles, dirpath: Path, made: Any) -> None:
    publishing.write_batch(dirpath, made)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_of_multiprocessing_loses_none_though_nobody_closes(
    stitching: Stitching, method: str
) -> None:
    image = voxels((2, 1, 70, 90))
    made = regions("newer", image, "SYX", (2, 70, 90))
    # Batches that would linger longer than the children live.
    publishing = strategy(stitching, linger_s=60.0, batch_bytes=8 << 20)
    context: Any = multiprocessing.get_context(method)
    publishing.write_batch(stitching.root / "run1", made[:1])

    halves = (made[1 : len(made) // 2], made[len(made) // 2 :])
    arguments = [(publishing, stitching.root / "run1", half) for half in halves]
    children = [context.Process(target=_child, args=each) for each in arguments]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    publishing.close()

    assert [child.exitcode for child in children] == [0, 0]
    identical(stored(stitching), image[:, 0])


class Writer:
    """What is attached to, of CAREamics' callback."""

    write_strategy: Any = None

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        """Tell the sources' base, as CAREamics' does."""
        self.write_strategy.set_source_base(Path("/data"))

    def set_writing_strategy(self, **_: Any) -> None:
        """Forget the strategy, as `predict_to_disk` does."""
        self.write_strategy = None

    def on_predict_end(self, trainer: Any, module: Any) -> None:
        """Do nothing, as Lightning's."""


def test_what_is_attached_keeps_the_strategy_and_waits_at_the_end(stitching: Stitching) -> None:
    image = voxels((1, 1, 70, 90))
    publishing = strategy(stitching, linger_s=60.0, batch_bytes=8 << 20)
    writer = pickle.loads(pickle.dumps(publishing.attach(Writer())))

    writer.set_writing_strategy(write_type="zarr", tiled=True)
    writer.write_strategy.write_batch(
        stitching.root / "run1", regions("newer", image, "YX", (70, 90))
    )
    writer.on_predict_end(None, None)

    identical(stored(stitching), image[0, 0])


def test_what_is_attached_lets_sources_with_and_without_shards_make_a_batch() -> None:
    data, spec = np.zeros((1, 8, 8), "float32"), {"sample_idx": 0}
    dataset = [
        (region("newer", data, "YX", (8, 8), spec, chunks=(4, 4), shards=(8, 8)),),
        (region("newer", data, "YX", (8, 8), spec, chunks=(4, 4)),),
    ]
    trainer = SimpleNamespace(datamodule=SimpleNamespace(predict_dataset=dataset))
    writer = PublishTiles("/mnt/out").attach(Writer())

    writer.setup(trainer, None, "fit")
    assert trainer.datamodule.predict_dataset is dataset
    writer.setup(trainer, None, "predict")

    # As a worker of the data loader gets it.
    images = pickle.loads(pickle.dumps(trainer.datamodule.predict_dataset))
    assert [images[i][0].additional_metadata for i in range(len(images))] == [
        {"chunks": (4, 4)},
        {"chunks": (4, 4)},
    ]
    assert len(images.copy()) == 2


def test_an_error_of_the_prediction_stands_and_says_what_was_not_published(tmp_path: Path) -> None:
    down = f"127.0.0.1:{free_port()}"
    made = regions("newer", voxels((1, 1, 70, 90)), "YX", (70, 90))

    publishing = PublishTiles(tmp_path, down, timeout_s=0.2)
    publishing.write_batch(tmp_path, made)

    with pytest.raises(MemoryError) as raised, publishing:
        raise MemoryError

    assert "not confirmed" in raised.value.__notes__[0]


def test_tiles_that_cannot_be_published_are_told_at_the_end(tmp_path: Path) -> None:
    down = f"127.0.0.1:{free_port()}"
    publishing = PublishTiles(tmp_path, down, timeout_s=0.2)
    publishing.write_batch(tmp_path, regions("newer", voxels((1, 1, 70, 90)), "YX", (70, 90)))

    with pytest.raises(PublishError, match=down):
        publishing.close()
