"""A round of blocks of which one is of an array that was removed and made anew."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from consumer.arrays import Store, open_store
from consumer.contract import build
from consumer.coverage import Box
from consumer.ledger import LIMIT_BYTES
from consumer.message import Outline
from consumer.openings import open_writable
from consumer.requests import Open, Remark, Setup, WriteBlock
from consumer.rounds import Encoded, WritableArray, commit, encode

STORE, SIDE = "a.zarr", 4
BOX = Box.of_shape((SIDE, SIDE))
TILE = {"stitch_coords": [0, 0], "crop_size": [1, 1], "fill": 0}
FIELDS = {
    "store": STORE,
    "array": "x",
    "axes": "YX",
    "shape": [SIDE, 2 * SIDE],
    "dtype": "uint8",
    "chunks": [SIDE, SIDE],
    "shards": [SIDE, SIDE],
    "tiles": [TILE],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path, STORE, file_mode=0o644, folder_mode=0o755)


def opened(store: Store) -> WritableArray:
    """Open the array anew."""
    root = store.path.parent
    setup = Setup(root, 1, True, 0o644, 0o755, LIMIT_BYTES, "INFO", "text", 0, "", 0, "", 1)
    array, _ = open_writable(setup, store, Open(Outline(build(FIELDS), (), ()), 1 << 20, False))
    return array


def block(array: WritableArray, column: int) -> Encoded:
    """Return a whole block, encoded."""
    box = BOX.shifted((0, -column * SIDE))
    key, dtype = array.open.key, np.dtype("uint8")
    write = WriteBlock(key, box, 0, dtype, (BOX,), False, (0, column), 1, None, None)
    return encode(array, write, np.full((SIDE, SIDE), 1 + column, np.uint8))


def test_what_was_encoded_for_an_array_that_is_gone_does_not_go_into_the_one_made_since(
    store: Store,
) -> None:
    before = opened(store)
    commit([block(before, 0)])
    shutil.rmtree(store.path)
    since = opened(store)
    for blocks in ([block(before, 1), block(since, 0)], [block(since, 0), block(before, 1)]):
        with pytest.raises(FileNotFoundError):
            commit(blocks)
        voxels = [array.ledger.filled_voxels for array in (before, since)]
        assert voxels == [SIDE * SIDE, 0]
    commit([block(since, 0)])
    assert since.ledger.filled_voxels == SIDE * SIDE


def test_only_what_is_complete_counts_as_announced(store: Store) -> None:
    array = opened(store)
    announced = Encoded(array, Remark(array.open.key, announced=array.ledger.header.ledger), {})
    commit([block(array, 0)])
    commit([announced])
    assert not array.ledger.header.announced
    commit([block(array, 1)])
    commit([announced])
    assert array.ledger.header.announced


def test_what_was_announced_of_an_earlier_ledger_says_nothing_of_the_present_one(
    store: Store,
) -> None:
    array = opened(store)
    commit([block(array, 0), block(array, 1)])
    commit([Encoded(array, Remark(array.open.key, announced="an earlier one"), {})])
    assert array.ledger.complete
    assert not array.ledger.header.announced
