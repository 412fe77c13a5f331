"""What becomes of deliveries that a block or an array speaks against, and of those beside them."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flowing import KEY, LIMIT, FlowBench

from consumer import intake
from consumer.blocks import Block, DeliveryId
from consumer.budget import max_block_bytes
from consumer.coverage import Box
from consumer.errors import (
    ArrayMismatch,
    DamagedBlock,
    Fenced,
    Leftovers,
    StorageFault,
    StoreRemoved,
)
from consumer.placement import Grid, Piece
from consumer.scratch import Scratch

# One block fits the budget with what writing it takes, and two do not.
LARGE = 560
assert 4 * max_block_bytes(LIMIT) < 5 * LARGE * LARGE * 2 <= 5 * max_block_bytes(LIMIT)
FIRST, SECOND = DeliveryId(1, 1), DeliveryId(1, 2)
CORNER = {"stitch_coords": [0, 0], "crop_size": [1, 1]}
WHOLE_BLOCK = {"stitch_coords": [0, 0], "crop_size": [4, 4]}
OTHER_BLOCK = {"stitch_coords": [0, 4], "crop_size": [4, 4]}
BOTH_BLOCKS = {"stitch_coords": [0, 0], "crop_size": [4, 8]}


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    with closing(Scratch(tmp_path, 1 << 20)) as scratch:
        yield scratch


@pytest.fixture
def bench(tmp_path: Path, scratch: Scratch) -> FlowBench:
    return FlowBench(tmp_path, scratch)


def test_a_delivery_that_waits_for_room_with_its_rest_comes_again_and_is_parked_once(
    tmp_path: Path, scratch: Scratch
) -> None:
    bench = FlowBench(tmp_path, scratch, side=LARGE)
    bench.failing[0, 0] = DamagedBlock("what is stored cannot be decoded")
    in_both = {"stitch_coords": [0, LARGE - 1], "crop_size": [4, 2]}
    bench.deliver(1, in_both)
    assert (bench.requeued, bench.parked) == ([FIRST], [])
    assert bench.flow.budget.held["bodies"] == 0
    bench.deliver(2, in_both)
    assert bench.parked == ["damaged_block"]
    assert bench.acknowledged == [SECOND]
    assert bench.flow.drained


@pytest.mark.parametrize("bound", [{"run": "first"}, {"source": "another"}], ids=str)
def test_tiles_that_were_taken_for_another_run_or_source_are_given_back(
    bench: FlowBench, bound: dict[str, Any]
) -> None:
    bench.failing[0, 0] = Fenced("another took the store")
    bench.opened = [{}, bound]
    bench.deliver(1, WHOLE_BLOCK, run="second", source="image")
    assert bench.given_up == []
    bench.failing.clear()
    bench.tick(1.0)
    assert len(bench.given_up) == 1
    assert "bound to another source or run" in bench.given_up[0]
    bench.tick(1.0)
    assert (bench.acknowledged, bench.parked) == ([], [])


def test_tiles_are_kept_where_the_array_is_still_their_runs(bench: FlowBench) -> None:
    bench.failing[0, 0] = Fenced("another took the store")
    bench.opened = [{}, {"run": "first"}]
    bench.deliver(1, WHOLE_BLOCK, run="first", source="image")
    bench.failing.clear()
    bench.tick(1.0)
    assert (bench.given_up, bench.acknowledged) == ([], [FIRST])


def test_while_an_array_that_was_open_is_removed_its_tiles_wait(bench: FlowBench) -> None:
    bench.failing[0, 0] = StoreRemoved("its metadata are gone")
    bench.opened = [{}, Leftovers("the folder is not empty")]
    bench.deliver(1, WHOLE_BLOCK)
    bench.deliver(2, CORNER)
    for _ in range(20):
        bench.tick(5.0)
    assert (bench.parked, bench.acknowledged) == ([], [])
    bench.failing.clear()
    bench.opened = [{}]
    bench.tick(60.0)
    bench.tick(60.0)
    assert (bench.parked, bench.acknowledged) == ([], [FIRST, SECOND])


def test_what_is_left_of_an_array_is_not_waited_for_longer_than_a_tile_may_take(
    bench: FlowBench,
) -> None:
    bench.failing[0, 0] = StoreRemoved("its metadata are gone")
    bench.opened = [{}, Leftovers("the folder is not empty")]
    bench.deliver(1, WHOLE_BLOCK)
    bench.tick(1.0)
    bench.deliver(2, CORNER)
    for _ in range(75):
        bench.tick(5.0)
    assert bench.parked == ["array_mismatch"]


def test_a_message_for_which_there_is_no_memory_is_tried_again(
    bench: FlowBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode_in_vain(*_arguments: object, **_named: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(intake, "decode", decode_in_vain)
        bench.deliver(1, WHOLE_BLOCK)
        bench.tick(1.0)
        assert (bench.parked, bench.acknowledged) == ([], [])
    bench.tick(1.0)
    assert (bench.parked, bench.acknowledged) == ([], [FIRST])


def test_a_message_for_which_memory_ran_out_half_way_is_placed_from_the_start(
    bench: FlowBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Grid.pieces

    def half(grid: Grid, box: Box) -> Iterator[Piece]:
        yield next(whole(grid, box))
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Grid, "pieces", half)
        bench.deliver(1, BOTH_BLOCKS)
        bench.tick(1.0)
        assert (bench.parked, bench.acknowledged) == ([], [])
    bench.tick(1.0)
    assert (bench.parked, bench.acknowledged) == ([], [FIRST])
    assert set(bench.written) == {(0, 0), (0, 1)}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_block_for_which_memory_ran_out_is_nobodys_once_its_delivery_is_gone(
    bench: FlowBench, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    whole = Block.put

    def put(*given: Any) -> None:
        if when == "after":
            whole(*given)
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Block, "put", put)
        bench.deliver(1, CORNER)
        bench.flow.channel_lost(1)
    assert bench.flow.assembler.open_blocks == 0
    bench.deliver(2, WHOLE_BLOCK, channel=2)
    bench.tick(1.0)
    assert (bench.acknowledged, bench.flow.drained) == ([DeliveryId(2, 2)], True)


def test_a_message_that_is_parked_for_its_block_begins_no_run(
    tmp_path: Path, scratch: Scratch
) -> None:
    bench = FlowBench(tmp_path, scratch, on_new_run="replace")
    bench.failing[0, 0] = DamagedBlock("what is stored cannot be decoded")
    bench.deliver(1, WHOLE_BLOCK, run="first")
    assert bench.requeued == [FIRST]
    bench.deliver(2, WHOLE_BLOCK, run="second")
    assert bench.parked == ["damaged_block"]
    bench.deliver(3, OTHER_BLOCK, run="first")
    bench.tick(1.0)
    assert (bench.openings, bench.parked) == (["first"], ["damaged_block"])
    assert bench.acknowledged == [SECOND, DeliveryId(1, 3)]


def test_a_message_that_is_parked_for_its_block_binds_no_array(bench: FlowBench) -> None:
    bench.failing[0, 0] = DamagedBlock("what is stored cannot be decoded")
    bench.deliver(1, WHOLE_BLOCK, run="first")
    bench.flow.channel_lost(1)
    bench.opened = [StorageFault("away"), {}]
    bench.deliver(2, WHOLE_BLOCK, channel=2, run="first")
    bench.deliver(3, OTHER_BLOCK, channel=2, run="second")
    for _ in range(5):
        bench.tick(1.0)
    assert bench.parked == ["damaged_block"]
    assert bench.written == [(0, 1)]


def test_what_is_left_of_an_array_is_not_waited_for_while_others_of_its_store_are_written(
    bench: FlowBench,
) -> None:
    bench.deliver(1, WHOLE_BLOCK, array="y")
    bench.failing["y"] = StoreRemoved("its metadata are gone")
    bench.in_the_way["y"] = Leftovers("the folder is not empty")
    bench.deliver(2, WHOLE_BLOCK, array="y")
    bench.tick(1.0)
    bench.deliver(3, CORNER, array="y")
    for tag in range(4, 400):
        bench.deliver(tag, WHOLE_BLOCK, array="x")
        bench.tick(1.0)
    assert bench.parked == ["array_mismatch"]
    assert len(bench.acknowledged) > 300


def test_a_block_is_not_condemned_for_an_array_that_its_tiles_were_not_taken_for(
    bench: FlowBench,
) -> None:
    bench.holding.add(KEY.store)
    bench.deliver(1, WHOLE_BLOCK)
    (end,) = bench.held_back
    bench.flow.channel_lost(1)
    bench.deliver(2, WHOLE_BLOCK, channel=2)
    bench.holding.clear()
    bench.failing[0, 0] = DamagedBlock("what is stored cannot be decoded")
    end()
    bench.failing.clear()
    bench.turn()
    bench.tick(1.0)
    assert (bench.requeued, bench.parked) == ([], [])
    assert bench.acknowledged == [DeliveryId(2, 2)]


def test_an_array_is_not_bound_to_the_source_of_tiles_that_are_gone(bench: FlowBench) -> None:
    bench.holding.add(KEY.store)
    bench.deliver(1, WHOLE_BLOCK, source="image")
    bench.flow.channel_lost(1)
    bench.deliver(2, WHOLE_BLOCK, channel=2, source="another")
    (end,) = bench.held_back
    bench.holding.clear()
    end()
    bench.turn()
    bench.tick(1.0)
    assert bench.parked == []
    assert bench.acknowledged == [DeliveryId(2, 2)]


def test_what_was_left_alone_for_a_suspect_is_written_before_the_end(
    bench: FlowBench,
) -> None:
    bench.failing["bad.zarr"] = StorageFault("no space is left")
    bench.holding.add(KEY.store)
    bench.deliver(1, WHOLE_BLOCK, store="bad.zarr")
    bench.deliver(2, WHOLE_BLOCK, count=5)
    while not bench.held_back:
        bench.tick(1.0)
    bench.flow.drain()
    bench.failing.clear()
    bench.held_back[0]()
    for _ in range(3):
        bench.tick(60.0)
    assert bench.flow.drained
    assert set(bench.acknowledged) == {FIRST, SECOND}


@pytest.mark.parametrize("error", [Leftovers, ArrayMismatch])
def test_what_stands_in_the_way_of_an_array_that_never_was_is_not_waited_for(
    bench: FlowBench, error: type[ArrayMismatch]
) -> None:
    bench.opened = [error("in the way")]
    bench.deliver(1, WHOLE_BLOCK)
    assert bench.parked == ["array_mismatch"]
