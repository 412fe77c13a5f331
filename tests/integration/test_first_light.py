"""A tile's whole way, through a real broker and a real consumer process."""

from pathlib import Path

import numpy as np
import zarr

from conftest import MakeConsumer
from harness import Channel, voxels


def test_tiles_end_in_the_array_and_are_acknowledged(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    image = voxels((1, 512, 512))
    with make_consumer() as consumer:
        for y in range(0, 512, 128):
            for x in range(0, 512, 128):
                producer.send(
                    {
                        "store": "a/b.zarr",
                        "array": "g/x",
                        "axes": "CYX",
                        "shape": [1, 512, 512],
                        "tiles": [{"stitch_coords": [y, x]}],
                    },
                    [image[:, y : y + 128, x : x + 128]],
                )
        consumer.wait_settled(16)
        assert consumer.metrics()["tiles_deliveries_acknowledged_total"] == 16
        assert consumer.stop() == 0
    stored = zarr.open_array(tmp_path / "root/a/b.zarr", path="g/x", mode="r")
    np.testing.assert_array_equal(stored[:], image)
