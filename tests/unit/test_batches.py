"""Tiles made ready: cropped, cut to the limit, gathered; and the consumer reads what was meant."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from consumer.batches import Batch, Batches, prepare
from consumer.errors import ConsumerError
from consumer.message import Envelope, decode

ARRAY = {"store": "a.zarr", "array": "x", "axes": "CYX", "shape": [4, 64, 64], "dtype": "uint16"}
TILE = np.arange(2 * 16 * 16, dtype="uint16").reshape(2, 16, 16)
LIMIT = 1 << 20


def ready(
    tile: npt.NDArray[Any] | None = TILE,
    array: dict[str, Any] = ARRAY,
    *,
    limit: int = LIMIT,
    cast: bool = False,
    **place: Any,
) -> Any:
    """Return a prepared tile."""
    wanted = {"stitch_coords": [8, 8]} | place
    return prepare(array, tile, wanted, to_dtype=cast, max_bytes=limit)


def stitched(*batches: Batch, limit: int = LIMIT) -> npt.NDArray[Any]:
    """Return the array as the consumer would write it."""
    found = np.zeros((4, 64, 64), "uint16")
    for batch in batches:
        message = batch.encode(sent_ms=1, compress=False, checksum=True, max_bytes=limit)
        named = {k: message.properties[k] for k in ("type", "content_type", "headers")}
        for tile in decode(Envelope(message.routing_key, **named), message.body).tiles:
            found[tile.box.slices] = tile.values
    return found


def gathered(prepared: Any, *, batch_bytes: int = 0, limit: int = LIMIT) -> list[Batch]:
    """Return the batches of one prepared tile."""
    batches = Batches(batch_bytes, limit)
    return [*batches.add(prepared), *batches.close()]


def test_only_the_crop_is_sent() -> None:
    prepared = ready(crop_coords=[2, 3], crop_size=[4, 5])

    (part,) = prepared.parts
    assert part.values.shape == (2, 4, 5)
    assert part.place == {"stitch_coords": [8, 8]}
    wanted = np.zeros((4, 64, 64), "uint16")
    wanted[:2, 8:12, 8:13] = TILE[:, 2:6, 3:8]
    np.testing.assert_array_equal(stitched(*gathered(prepared)), wanted)


@pytest.mark.parametrize("limit", [1750, 1800, 1950, 2100, 2400])
def test_a_tile_over_the_limit_is_sent_in_parts(limit: int) -> None:
    batches = gathered(ready(limit=limit), limit=limit)

    assert len(batches) > 1
    wanted = np.zeros((4, 64, 64), "uint16")
    wanted[:2, 8:24, 8:24] = TILE
    np.testing.assert_array_equal(stitched(*batches, limit=limit), wanted)


def test_channels_are_parted_only_where_space_cannot_be() -> None:
    tile = np.arange(4, dtype="uint16").reshape(4, 1, 1)

    room = 4 + ready(None, fill=0, crop_size=[1, 1]).nbytes
    prepared = ready(tile, limit=ready(tile).array.nbytes + room)

    assert [p.place.get("channel", 0) for p in prepared.parts] == [0, 2]


def test_small_tiles_of_one_array_share_a_message() -> None:
    batches = Batches(3000, LIMIT)

    first = batches.add(ready())
    full = batches.add(ready(stitch_coords=[40, 40]))

    assert first == []
    assert [len(batch.parts) for batch in full] == [2]
    assert not batches


def test_tiles_of_different_arrays_do_not() -> None:
    batches = Batches(3000, LIMIT)
    batches.add(ready())
    batches.add(ready(array=ARRAY | {"array": "y"}))

    assert sorted(batch.array.text.count('"y"') for batch in batches.close()) == [0, 1]


def test_a_message_never_grows_beyond_the_limit() -> None:
    batches = Batches(1 << 30, 4000)

    full = [batch for _ in range(9) for batch in batches.add(ready())]

    assert [len(batch.parts) for batch in full] == [1] * 8


def test_a_message_has_no_more_tiles_than_its_header_can_list() -> None:
    batches = Batches(1 << 30, LIMIT * 16)
    prepared = ready(None, fill=7, crop_size=[1, 1])

    full = [batch for _ in range(1025) for batch in batches.add(prepared)]

    assert [len(batch.parts) for batch in full] == [1024]


def test_what_waits_does_not_change_with_the_producers_buffer() -> None:
    tile, batches = TILE.copy(), Batches(1 << 20, LIMIT)
    batches.add(ready(tile))

    tile[:] = 0

    assert stitched(*batches.close()).any()


def test_a_fill_is_sent_without_a_tensor() -> None:
    prepared = ready(None, fill=7, crop_size=[4, 4])

    assert prepared.parts[0].values is None
    assert stitched(*gathered(prepared)).sum() == 7 * 16


def test_a_cast_rounds_to_the_arrays_dtype() -> None:
    prepared = ready(np.full((1, 2, 2), 2.6), cast=True)

    assert prepared.parts[0].values.dtype == "uint16"
    assert (prepared.parts[0].values == 3).all()


def test_clipping_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ready(np.full((1, 2, 2), -1.0), cast=True)

    (record,) = caplog.records
    assert record.message == "values of a.zarr/x were clipped to uint16: 4"


UNTOLD = {k: v for k, v in ARRAY.items() if k != "dtype"}
REFUSED = {
    "wrong shape": (
        {"tile": TILE[0]},
        "tile 0: the tensor of shape [16, 16] must have 3 axes: channel first, then 2 of space",
    ),
    "wrong dtype": (
        {"tile": TILE.astype("float32")},
        "tile 0: float32 cannot be stored as uint16 without loss; cast it before publishing",
    ),
    "no dtype, and values that the default one cannot hold": (
        {"tile": TILE.astype("int64"), "array": UNTOLD},
        "tile 0: int64 cannot be stored as float32 without loss; cast it before publishing, or "
        "give the array's dtype, which is float32 by default",
    ),
    "dtype that nobody reads": (
        {"tile": TILE.astype("complex64")},
        "tensor '0' has the unknown dtype 'C64'; known are BOOL, U8, I8, U16, I16, U32, I32, U64, "
        "I64, F16, F32, F64",
    ),
    "misspelt axis": (
        {"array": ARRAY | {"axes": "CXY"}},
        "axes: must be some of STCZYX in that order, always with YX (got 'CXY')",
    ),
    "misspelt key": (
        {"array": ARRAY | {"chunk": [1, 16, 16]}},
        "chunk: Extra inputs are not permitted (got [1, 16, 16])",
    ),
    "stitch outside": (
        {"stitch_coords": [60, 8]},
        "tile 0: stitch_coords [60, 8] with a crop of [16, 16] leave the array of [64, 64]",
    ),
    "too many channels": (
        {"channel": 3},
        "tile 0: channel 3 with 2 channels leaves the array's 4 channels",
    ),
    "no voxels": (
        {"tile": TILE[:, :0]},
        "tile 0: the tensor of shape [2, 0, 16] has no voxels",
    ),
    "cast to what nobody named": (
        {"array": UNTOLD, "cast": True},
        "cast needs to know the array's dtype; give it with axes and shape",
    ),
    "no room for the array's words": (
        {"limit": 1024},
        "a message of 1024 bytes has no room for what it says of its array",
    ),
}


@pytest.mark.parametrize(("changed", "line"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_told_in_one_line(changed: dict[str, Any], line: str) -> None:
    with pytest.raises(ConsumerError) as refused:
        ready(**changed)

    assert str(refused.value) == line
