"""Whatever order tiles come in, however often and however slowly, the array is the same."""

import contextlib
import itertools
import os
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumer.message import Encoded
from consumer.testing import RabbitMQ
from harness import Channel, ConsumerProcess, ended, wait_until
from stitching import Numbers, Picture, Stitching, crop, region, running

SEED = "TEST_SEED"
TWICE = 0.3

# Three stores; some arrays sharded, some in three dimensions. Together far beyond what scarce
# memory holds, but no block is.
ARRAYS: list[dict[str, Any]] = [
    {"store": "a.zarr", "array": "img", "axes": "YX", "shape": [400, 330], "chunks": [64, 64]},
    {
        "store": "a.zarr",
        "array": "g/img",
        "axes": "SCYX",
        "shape": [2, 2, 300, 260],
        "chunks": [1, 1, 64, 64],
        "shards": [1, 2, 128, 192],
    },
    {
        "store": "p/b.zarr",
        "array": "img",
        "axes": "ZYX",
        "shape": [15, 125, 170],
        "dtype": "uint32",
        "chunks": [8, 64, 64],
    },
    {
        "store": "p/b.zarr",
        "array": "g/img",
        "axes": "CZYX",
        "shape": [2, 20, 130, 140],
        "dtype": "uint16",
        "chunks": [1, 5, 32, 32],
        "shards": [2, 10, 64, 96],
    },
    {"store": "p/c.zarr", "array": "img", "axes": "STYX", "shape": [2, 3, 200, 200]},
    {
        "store": "p/c.zarr",
        "array": "g/h/img",
        "axes": "YX",
        "shape": [400, 390],
        "dtype": "float64",
        "chunks": [50, 100],
        "shards": "auto",
    },
]
# So little that blocks must be written before they are complete, and read again.
SCARCE = {
    "memory_budget_bytes": 9 << 20,
    "max_message_bytes": 1 << 20,
    "scratch_bytes": 64 << 20,
    "prefetch_count": 24,
}
_FOLDERS = itertools.count()


@pytest.fixture
def rng() -> random.Random:
    """Dice whose seed is shown with a failure and can be given again."""
    seed = int(os.environ.get(SEED) or random.SystemRandom().getrandbits(32))
    print(f"{SEED}={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def plenty(broker: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stitching]:
    """A consumer that holds all arrays in memory, for the tests that do not stop it."""
    with running(broker, tmp_path_factory.mktemp("plenty")) as stitching:
        yield stitching


@pytest.fixture(scope="module")
def scarce(broker: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stitching]:
    """A consumer that holds hardly any array in memory, for the tests that do not stop it."""
    with running(broker, tmp_path_factory.mktemp("scarce"), **SCARCE) as stitching:
        yield stitching


@pytest.fixture(params=["plenty", "scarce"])
def stitching(request: pytest.FixtureRequest) -> Stitching:
    """Either consumer."""
    found: Stitching = request.getfixturevalue(request.param)
    return found


Consumer = Callable[..., contextlib.AbstractContextManager[Stitching]]


@pytest.fixture
def consumer(broker: RabbitMQ, prefix: str, producer: Channel, tmp_path: Path) -> Consumer:
    """Run consumers of this test's queue one after the other, each stopped at the end."""

    @contextlib.contextmanager
    def run(**settings: Any) -> Iterator[Stitching]:
        log = tmp_path / f"{uuid.uuid4().hex}.log"
        wanted: dict[str, Any] = {"topology_prefix": prefix, "idle_s": 0.3} | settings
        process = ConsumerProcess(broker, tmp_path / "root", log, **wanted)
        with ended(process):
            yield Stitching(process.start(), producer, tmp_path / "root")
            assert process.stop() == 0

    return run


def pictures() -> list[Picture]:
    """Return the six arrays, empty, in a folder of their own."""
    numbers, folder = Numbers(), next(_FOLDERS)
    return [Picture(numbers, of | {"store": f"{folder}/{of['store']}"}) for of in ARRAYS]


def shuffled(messages: list[Encoded], rng: random.Random) -> list[Encoded]:
    """Return the messages in any order, some of them twice: soon after, or at the very end."""
    rng.shuffle(messages)
    again = rng.sample(messages, round(TWICE * len(messages)))
    late = again[::2]
    for message in again[1::2]:
        messages.insert(messages.index(message) + rng.randint(1, 8), message)
    return messages + late


def test_shuffled_and_repeated_tiles_make_the_same_arrays(
    stitching: Stitching, rng: random.Random
) -> None:
    drawn = pictures()
    tiles = [(picture, tile) for picture in drawn for tile in picture.tiles(96, 16)]
    messages = shuffled([picture.message(tile) for picture, tile in tiles], rng)
    stitching.write(messages)
    stitching.check(*drawn)


def test_all_that_was_published_is_acknowledged(plenty: Stitching, rng: random.Random) -> None:
    before = plenty.acknowledged
    drawn = pictures()
    messages = [picture.message(tile) for picture in drawn for tile in picture.tiles(96, 16)]
    count = plenty.publish(shuffled(messages, rng))
    wait_until(lambda: plenty.acknowledged == before + count, "every acknowledgement")
    assert plenty.producer.depth(f"{plenty.producer.prefix}.00") == 0


def test_hardly_any_memory_makes_blocks_be_written_before_they_are_complete(
    scarce: Stitching, rng: random.Random
) -> None:
    written = 'tiles_blocks_written_total{reason="pressure"}'
    before = scarce.count(written)
    tiles = [(picture, tile) for picture in pictures() for tile in picture.tiles(96, 16)]
    rng.shuffle(tiles)
    scarce.write(picture.message(tile) for picture, tile in tiles)
    assert scarce.count(written) > before


def batches(picture: Picture, rng: random.Random) -> Iterator[list[Any]]:
    """Yield a picture's tiles in any order, a few at a time, below the limit of a message."""
    tiles = picture.tiles(96, 16)
    rng.shuffle(tiles)
    room = SCARCE["max_message_bytes"] // (
        2 * max(tensor.nbytes for _, tensor in tiles if tensor is not None)
    )
    while tiles:
        size = rng.randint(1, max(1, min(room, 6)))
        yield tiles[:size]
        del tiles[:size]


def test_shuffled_and_repeated_batches_make_the_same_arrays(
    stitching: Stitching, rng: random.Random
) -> None:
    drawn = pictures()
    messages = [picture.message(*tiles) for picture in drawn for tiles in batches(picture, rng)]
    stitching.write(shuffled(messages, rng))
    stitching.check(*drawn)


def test_tiles_repeated_after_all_was_written_change_nothing(
    stitching: Stitching, rng: random.Random
) -> None:
    drawn = pictures()
    messages = [picture.message(tile) for picture in drawn for tile in picture.tiles(96, 16)]
    stitching.write(messages)
    stitching.write(rng.sample(messages, len(messages) // 3))
    stitching.check(*drawn)


def test_a_message_beyond_the_memory_is_parked_and_holds_up_none(
    scarce: Stitching, rng: random.Random
) -> None:
    drawn = pictures()
    huge = Picture(drawn[0].numbers, drawn[0].fields | {"array": "huge", "shape": [900, 900]})
    [(entry, tensor)] = huge.tiles(900)
    settled = scarce.consumer.settled()
    messages = drawn[1].messages(drawn[1].tiles(96, 16))
    count = scarce.publish([huge.unchecked((entry, tensor)), *messages])
    scarce.consumer.wait_settled(settled + count, 30)
    assert [reason for reason, _ in scarce.parked()] == ["too_large"]
    scarce.check(drawn[1])


# -- slow producers -----------------------------------------------------------------------------


def spells(drawn: list[Picture], rng: random.Random, count: int) -> list[list[Any]]:
    """Return all tiles in any order, in as many parts, each to be followed by silence."""
    tiles = [(picture, tile) for picture in drawn for tile in picture.tiles(96, 16)]
    rng.shuffle(tiles)
    return [tiles[i::count] for i in range(count)]


def write_spell(stitching: Stitching, spell: list[Any]) -> None:
    """Publish tiles, and wait until they are written though no more come."""
    stitching.write([picture.message(tile) for picture, tile in spell])


def check(stitching: Stitching, drawn: list[Picture]) -> None:
    """Check every array that has tiles; where it has none yet, it holds the fill value."""
    stitching.check(*(picture for picture in drawn if picture.image.any()))


def test_incomplete_arrays_are_written_when_no_more_tiles_come(
    stitching: Stitching, rng: random.Random
) -> None:
    drawn = pictures()
    first, *_ = spells(drawn, rng, 3)
    write_spell(stitching, first)
    check(stitching, drawn)


def test_arrays_that_are_filled_in_spells_have_no_holes(
    stitching: Stitching, rng: random.Random
) -> None:
    drawn = pictures()
    for spell in spells(drawn, rng, 3):
        write_spell(stitching, spell)
        check(stitching, drawn)


def test_arrays_that_another_consumer_goes_on_with_have_no_holes(
    consumer: Consumer, rng: random.Random
) -> None:
    drawn = pictures()
    for spell in spells(drawn, rng, 2):
        with consumer() as stitching:
            write_spell(stitching, spell)
            check(stitching, drawn)


def test_a_consumer_that_goes_on_merges_with_what_is_stored(
    consumer: Consumer, rng: random.Random
) -> None:
    drawn = pictures()[:1]
    for spell in spells(drawn, rng, 2):
        with consumer() as stitching:
            write_spell(stitching, spell)
            merged = stitching.count("tiles_blocks_merged_total")
    assert merged > 0


def test_tiles_that_wait_when_the_consumer_stops_are_written(
    consumer: Consumer, rng: random.Random
) -> None:
    drawn = pictures()
    first, second = spells(drawn, rng, 2)
    messages = [picture.message(tile) for picture, tile in first]
    with consumer(idle_s=1000) as stitching:
        stitching.publish(messages)
        wait_until(
            lambda: stitching.count("tiles_placed_total") == len(messages), "tiles to be placed"
        )
    check(stitching, drawn)
    with consumer() as stitching:
        write_spell(stitching, second)
        assert stitching.count("tiles_redeliveries_total") == 0
        stitching.check(*drawn)


# -- crops that overlap -------------------------------------------------------------------------


def overlapping(picture: Picture, rng: random.Random, count: int) -> list[Any]:
    """Return tiles at any place of an array's first sample, so that their crops overlap."""
    sizes = dict(zip(picture.fields["axes"], picture.fields["shape"], strict=True))
    spatial = [n for axis, n in sizes.items() if axis in "ZYX"]
    sampled = {"sample_idx": 0} if {"S", "T"} & set(sizes) else {}
    tiles = []
    for _ in range(count):
        size = [rng.randint(max(1, n // 5), max(1, n // 2)) for n in spatial]
        start = [rng.randint(0, n - m) for n, m in zip(spatial, size, strict=True)]
        tensor = picture.take((sizes.get("C", 1), *size))
        whole = {"crop_coords": [0] * len(size), "crop_size": size}
        tiles.append(({"stitch_coords": start, **whole, **sampled}, tensor))
    return tiles


def allowed(picture: Picture, tiles: list[Any], stored: Any) -> Any:
    """Return where the stored value is one that a tile gave, or nothing where none did."""
    good = np.zeros(stored.shape, bool)
    touched = np.zeros(stored.shape, bool)
    for entry, tensor in tiles:
        kept = crop(entry, tensor)
        index = region(picture.fields["axes"], stored.shape, entry, len(kept))
        values = kept if "C" in picture.fields["axes"] else kept[0]
        good[index] |= stored[index] == values
        touched[index] = True
    return good | (~touched & (stored == 0))


@pytest.mark.parametrize("pieces", [1, 3], ids=["at once", "in spells"])
def test_where_crops_overlap_every_voxel_is_that_of_one_of_them(
    stitching: Stitching, rng: random.Random, pieces: int
) -> None:
    drawn = [picture for picture in pictures() if picture.fields.get("dtype") != "uint16"]
    tiles = [overlapping(picture, rng, 12) for picture in drawn]
    pairs = zip(drawn, tiles, strict=True)
    messages = shuffled([picture.unchecked(tile) for picture, of in pairs for tile in of], rng)
    for part in (messages[i::pieces] for i in range(pieces)):
        stitching.write(part)
    for picture, of in zip(drawn, tiles, strict=True):
        assert allowed(picture, of, stitching.values(picture)).all()
