"""The flush rules, one sentence each. Blocks are 4 x 4 voxels of one byte."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from consumer.arena import Arena
from consumer.assembler import Assembler
from consumer.blocks import ArrayKey, DeliveryId, Reason, Write
from consumer.budget import ENCODING_FACTOR, Budget
from consumer.coverage import Box
from consumer.message import Tile
from consumer.placement import Layout

ARRAY = ArrayKey("s.zarr", "a")
LAYOUT = Layout("YX", (8, 8), np.dtype("uint8"), (4, 4), (4, 4))
BLOCK_BYTES = 16
ROOMY = 1 << 20


class Bench:
    """An assembler with a clock and deliveries that are numbered."""

    def __init__(self, limit: int = ROOMY) -> None:
        self.budget = Budget(limit)
        self.assembler = Assembler(self.budget, Arena(ROOMY), idle_s=5.0, max_age_s=100.0)
        self.now = 1000.0
        self.last = 0

    def add(
        self,
        start: Sequence[int],
        stop: Sequence[int],
        value: int = 7,
        array: ArrayKey = ARRAY,
        channel: int = 1,
    ) -> DeliveryId:
        """Deliver one tile."""
        identity, placed = self.try_add(start, stop, value, array, channel)
        assert placed
        return identity

    def try_add(
        self,
        start: Sequence[int],
        stop: Sequence[int],
        value: int = 7,
        array: ArrayKey = ARRAY,
        channel: int = 1,
        layout: Layout = LAYOUT,
    ) -> tuple[DeliveryId, bool]:
        """Deliver one tile for which there may be no room."""
        self.last += 1
        identity = DeliveryId(channel, self.last)
        tile = Tile(Box(tuple(start), tuple(stop)), value)
        placed = self.assembler.add(identity, array, layout, [tile], since=self.now, now=self.now)
        return identity, placed

    def next(self, **flags: Any) -> Write | None:
        """The next write."""
        return self.assembler.next_write(self.now, **flags)

    def due(self, **flags: Any) -> Write:
        """The next write, which there must be."""
        write = self.next(**flags)
        assert write is not None
        return write

    def held_but_spare(self) -> int:
        """Bytes held, without buffers that wait for another block."""
        return sum(nbytes for kind, nbytes in self.budget.held.items() if kind != "spare")

    def lose(self, channel: int = 1, store: str = ARRAY.store) -> None:
        """Lose a channel, and with it what is known of a store."""
        self.assembler.lose(channel, {store})

    def wrote(self, write: Write) -> list[DeliveryId]:
        """Have a write succeed."""
        return self.assembler.wrote(write)


def test_a_block_is_written_when_its_coverage_is_whole() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 2))
    assert bench.next() is None
    bench.add((0, 2), (4, 4))
    assert bench.due().reason is Reason.COMPLETE


def test_a_whole_block_is_written_without_reading_what_is_stored() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4))
    assert not bench.due().merge


def test_a_duplicate_does_not_make_a_block_complete() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 2))
    bench.add((0, 0), (4, 2))
    assert bench.next() is None


def test_overlapping_boxes_count_by_their_union() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 3))
    bench.add((0, 1), (3, 4))
    assert bench.next() is None
    bench.add((3, 3), (4, 4))
    assert bench.due().reason is Reason.COMPLETE


def test_a_delivery_is_settled_only_after_every_block_it_touches() -> None:
    bench = Bench()
    identity = bench.add((0, 0), (4, 8))
    first, second = bench.due(), bench.due()
    assert bench.wrote(second) == []
    assert bench.wrote(first) == [identity]


def test_a_block_is_written_when_durable_and_buffered_boxes_together_cover_it() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 2))
    write = bench.due(drain=True)
    bench.wrote(write)
    bench.add((0, 2), (4, 4))
    assert bench.due().reason is Reason.COMPLETE


def test_a_duplicate_of_a_durable_tile_is_not_written_at_once() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4))
    bench.wrote(bench.due())
    bench.add((0, 0), (4, 2))
    assert bench.next() is None


def test_a_duplicate_of_a_durable_tile_is_written_when_idle() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4))
    bench.wrote(bench.due())
    identity = bench.add((0, 0), (4, 2))
    bench.now += 5.0
    write = bench.due()
    assert write.reason is Reason.IDLE
    assert bench.wrote(write) == [identity]


def test_an_idle_array_is_written() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    bench.now += 4.9
    assert bench.next() is None
    bench.now += 0.1
    assert bench.due().reason is Reason.IDLE


def test_a_slow_producer_is_waited_for() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    bench.now += 20.0
    bench.add((0, 1), (1, 2))
    bench.now += 59.0
    assert bench.next() is None
    bench.now += 1.0
    assert bench.due().reason is Reason.IDLE


def test_a_busy_array_does_not_keep_an_idle_one_open() -> None:
    bench = Bench()
    other = ArrayKey("s.zarr", "b")
    bench.add((0, 0), (1, 1))
    for _ in range(5):
        bench.now += 1.0
        bench.add((0, 0), (1, 1), array=other)
    assert bench.due().key.array == ARRAY


def test_a_block_is_written_before_its_oldest_delivery_is_too_old() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    for _ in range(10):
        bench.now += 10.0
        bench.add((4, 4), (5, 5))
    write = bench.due()
    assert (write.reason, write.key.block) == (Reason.AGE, (0, 0))


def test_pressure_writes_the_blocks_of_the_oldest_delivery_first() -> None:
    bench = Bench()
    bench.add((0, 3), (2, 5))
    bench.add((4, 4), (5, 5))
    blocks = [bench.due(pressure=True).key.block for _ in range(3)]
    assert {blocks[0], blocks[1]} == {(0, 0), (0, 1)}
    assert blocks[2] == (1, 1)


def test_without_pressure_an_incomplete_block_is_not_written() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    assert bench.next() is None


def test_a_drain_writes_everything() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    bench.add((4, 4), (5, 5))
    assert {bench.due(drain=True).key.block for _ in range(2)} == {(0, 0), (1, 1)}


def test_a_paused_array_is_left_alone() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4))
    assert bench.next(paused=lambda array: array == ARRAY) is None


def test_no_second_write_of_a_block_starts_before_the_first_returned() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4))
    first = bench.due()
    bench.add((0, 0), (4, 4), value=8)
    assert bench.next(drain=True) is None
    bench.wrote(first)
    assert bench.due().buffer.max() == 8


def test_tiles_that_come_during_a_write_go_to_a_new_buffer() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4), value=1)
    write = bench.due()
    bench.add((0, 0), (4, 4), value=2)
    assert write.buffer.max() == 1


def test_a_delivery_that_came_during_a_write_is_not_settled_by_it() -> None:
    bench = Bench()
    first = bench.add((0, 0), (4, 4))
    write = bench.due()
    bench.add((0, 0), (4, 4))
    assert bench.wrote(write) == [first]


def test_what_a_write_merged_serves_the_next_write_of_the_block() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1), value=1)
    write = bench.due(drain=True)
    assert write.merge
    write.buffer[...] = 9
    write.buffer[0, 0] = 1
    bench.wrote(write)
    bench.add((1, 1), (2, 2), value=2)
    again = bench.due(drain=True)
    assert not again.merge
    assert sorted(again.buffer.ravel().tolist()) == [1, 2, *[9] * 14]


def test_after_forgetting_everything_a_block_is_read_again() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    bench.wrote(bench.due(drain=True))
    bench.lose()
    bench.add((1, 1), (2, 2))
    assert bench.due(drain=True).merge


def test_a_base_that_was_read_before_everything_was_forgotten_is_not_used() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    write = bench.due(drain=True)
    bench.lose()
    bench.add((1, 1), (2, 2))
    bench.wrote(write)
    assert bench.due(drain=True).merge


def test_a_base_of_a_write_that_failed_after_everything_was_forgotten_is_not_used() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 1))
    bench.wrote(bench.due(drain=True))
    bench.add((0, 1), (4, 2))
    write = bench.due(drain=True)
    assert not write.merge, "over what the first one left"
    bench.lose()
    bench.add((0, 1), (4, 2))
    bench.assembler.failed(write)
    assert bench.due(drain=True).merge


def test_a_failed_write_is_due_again_with_all_its_tiles() -> None:
    bench = Bench()
    identity = bench.add((0, 0), (4, 4))
    bench.assembler.failed(bench.due())
    again = bench.due()
    assert again.reason is Reason.COMPLETE
    assert bench.wrote(again) == [identity]


def test_a_failed_write_lies_below_the_tiles_that_came_meanwhile() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4), value=1)
    write = bench.due()
    bench.add((0, 0), (2, 4), value=2)
    bench.assembler.failed(write)
    again = bench.due()
    assert again.buffer[:2].tolist() == [[2] * 4] * 2
    assert again.buffer[2:].tolist() == [[1] * 4] * 2


def test_the_deliveries_of_a_condemned_block_are_forgotten_wherever_they_are() -> None:
    bench = Bench()
    spread = bench.add((0, 3), (1, 5))
    write = bench.due(drain=True)
    late = bench.add((0, 0), (1, 1))
    concerned = bench.assembler.condemn(write)
    assert concerned == ([spread, late] if write.key.block == (0, 0) else [spread])
    assert spread not in list(bench.assembler.deliveries())


def test_forgotten_deliveries_leave_no_block_behind() -> None:
    bench = Bench()
    identity = bench.add((0, 3), (1, 5))
    bench.assembler.forget([identity])
    assert bench.assembler.open_blocks == 0
    assert bench.budget.held["blocks"] == 0


def test_a_block_that_others_filled_too_stays_when_a_delivery_is_forgotten() -> None:
    bench = Bench()
    gone = bench.add((0, 0), (1, 1))
    stays = bench.add((1, 1), (2, 2))
    bench.assembler.forget([gone])
    assert bench.wrote(bench.due(drain=True)) == [stays]


@pytest.mark.parametrize("outcome", ["wrote", "failed"])
def test_a_write_whose_deliveries_were_forgotten_leaves_nothing_behind(outcome: str) -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4))
    write = bench.due()
    bench.lose()
    if outcome == "wrote":
        assert bench.wrote(write) == []
    else:
        bench.assembler.failed(write)
    assert bench.assembler.open_blocks == 0
    assert bench.held_but_spare() == 0


def test_a_write_of_which_nobody_waits_leaves_later_tiles_alone_when_it_fails() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4), value=1)
    write = bench.due()
    bench.lose()
    bench.add((0, 0), (2, 4), value=2)
    bench.assembler.failed(write)
    assert bench.next() is None
    again = bench.due(drain=True)
    assert (again.merge, list(again.filled)) == (True, [Box((0, 0), (2, 4))])
    assert bench.held_but_spare() == (1 + ENCODING_FACTOR) * BLOCK_BYTES


OTHER_LAYOUTS = {
    "blocks": Layout("YX", (8, 8), np.dtype("uint8"), (2, 8), (2, 8)),
    "type": Layout("YX", (8, 8), np.dtype("uint16"), (4, 4), (4, 4)),
}


@pytest.mark.parametrize("outcome", ["wrote", "failed"])
@pytest.mark.parametrize("layout", OTHER_LAYOUTS.values(), ids=OTHER_LAYOUTS)
def test_tiles_of_an_array_that_has_changed_wait_for_the_write_of_the_one_before(
    layout: Layout, outcome: str
) -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4))
    write = bench.due()
    bench.lose()
    bench.assembler.forget_stored(ARRAY)
    identity, placed = bench.try_add((0, 0), (2, 8), value=9, layout=layout)
    assert not placed
    getattr(bench.assembler, outcome)(write)
    assert bench.assembler.resume(identity)
    settled: list[DeliveryId] = []
    while (write := bench.next(drain=True)) is not None:  # type: ignore[assignment]
        assert (write.buffer.dtype, write.box) == (layout.dtype, layout.grid.box(write.key.block))
        settled += bench.wrote(write)
    assert settled == [identity]
    bench.assembler.release_spare()
    bench.assembler.forget_stored(ARRAY)
    assert sum(bench.budget.held.values()) == 0


def test_what_a_write_read_before_its_array_was_opened_anew_serves_no_other() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    write = bench.due(drain=True)
    bench.assembler.forget_stored(ARRAY)
    bench.wrote(write)
    bench.add((1, 1), (2, 2))
    assert bench.due(drain=True).merge


def _budget_for(blocks: int) -> int:
    """Return a limit with room for so many blocks and the writing of one."""
    share_of_blocks = (blocks + 3) * BLOCK_BYTES
    return -(-share_of_blocks * 16 // 11)


def test_a_tile_waits_for_room_and_is_placed_when_there_is() -> None:
    bench = Bench(_budget_for(blocks=1))
    bench.add((0, 0), (1, 1))
    waiting, placed = bench.try_add((4, 4), (5, 5))
    assert not placed
    bench.wrote(bench.due(pressure=True))
    assert bench.assembler.resume(waiting)


def test_a_tile_that_waits_for_room_outlives_that_its_array_is_opened_anew() -> None:
    bench = Bench(_budget_for(blocks=1))
    other = ArrayKey("s.zarr", "b")
    bench.add((0, 0), (1, 1))
    waiting, placed = bench.try_add((0, 0), (1, 1), array=other)
    assert not placed
    bench.assembler.forget_stored(other)
    bench.wrote(bench.due(pressure=True))
    assert bench.assembler.resume(waiting)
    bench.now += 5.0
    assert bench.due().reason is Reason.IDLE


def test_a_tile_that_straddles_more_blocks_than_there_is_room_for_is_placed_in_parts() -> None:
    bench = Bench(_budget_for(blocks=1))
    identity, placed = bench.try_add((0, 0), (8, 8))
    settled: list[DeliveryId] = []
    while not placed:
        settled += bench.wrote(bench.due())
        placed = bench.assembler.resume(identity)
    assert settled == []
    assert bench.wrote(bench.due()) == [identity]


def test_the_budget_is_empty_when_all_is_written() -> None:
    bench = Bench()
    bench.add((0, 0), (8, 8))
    for _ in range(4):
        bench.wrote(bench.due())
    assert bench.held_but_spare() == 0


def test_kept_buffers_make_way_for_new_blocks() -> None:
    bench = Bench(_budget_for(blocks=1))
    bench.add((0, 0), (1, 1))
    bench.wrote(bench.due(drain=True))
    bench.add((4, 4), (5, 5))
    assert bench.budget.held["cached"] == 0


def test_spare_buffers_can_be_given_back() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 4))
    bench.wrote(bench.due())
    assert bench.budget.held["spare"] == BLOCK_BYTES
    bench.assembler.release_spare()
    assert bench.budget.held["spare"] == 0


# -- channels -----------------------------------------------------------------------------------

OTHER = ArrayKey("other.zarr", "x")


def test_a_lost_channel_takes_only_its_own_deliveries() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    kept = bench.add((0, 0), (1, 1), array=OTHER, channel=2)
    bench.lose(1)
    assert list(bench.assembler.deliveries()) == [kept]
    write = bench.due(drain=True)
    assert (write.key.array, bench.wrote(write), bench.next(drain=True)) == (OTHER, [kept], None)


def test_a_block_that_two_channels_filled_keeps_the_tiles_of_the_one_that_is_left() -> None:
    bench = Bench()
    bench.add((0, 0), (4, 2))
    kept = bench.add((0, 2), (4, 3), value=5, channel=2)
    bench.lose(1)
    write = bench.due(drain=True)
    assert write.buffer[0, 2] == 5
    assert write.deliveries == {kept}


def test_what_was_kept_of_another_store_outlives_a_lost_channel() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1), array=OTHER, channel=2)
    bench.wrote(bench.due(drain=True))
    bench.lose(1)
    bench.add((1, 1), (2, 2), array=OTHER, channel=2)
    assert not bench.due(drain=True).merge


def test_a_write_of_another_store_stays_current_when_a_channel_is_lost() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    bench.add((0, 0), (1, 1), array=OTHER, channel=2)
    lost, kept = bench.due(drain=True), bench.due(drain=True)
    bench.lose(1)
    assert (lost.current, kept.current) == (False, True)


def test_pressure_on_one_channel_writes_nothing_of_another() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    bench.add((0, 0), (1, 1), array=OTHER, channel=2)
    assert bench.due(pressure={2}).key.array == OTHER
    assert bench.next(pressure={2}) is None


def test_under_pressure_the_channel_that_has_waited_longest_comes_first() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1), array=OTHER, channel=2)
    bench.now += 1
    bench.add((0, 0), (1, 1))
    assert bench.due(pressure=True).key.array == OTHER


def test_each_channels_oldest_delivery_ages_by_itself() -> None:
    bench = Bench()
    bench.add((0, 0), (1, 1))
    bench.now += 90
    bench.add((0, 0), (1, 1), array=OTHER, channel=2)
    bench.now += 20
    assert bench.due(idle=False).reason is Reason.AGE
    assert bench.next(idle=False) is None
    bench.now += 90
    assert bench.due(idle=False).key.array == OTHER
