"""Random histories of one owner keep the invariants, and each deliberate fault is found.

The seed of a failing history is in the test's message: `World(History(seed)).run()` repeats it.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from choices import History
from world import World

from consumer import placement
from consumer.assembler import Assembler
from consumer.blocks import Block, DeliveryId, Write
from consumer.coverage import Box, Coverage
from consumer.flow import Flow
from consumer.storage import Written

HISTORIES = 2000
SEEDS_UNTIL_FOUND = 2000


@pytest.fixture(autouse=True)
def _small_blocks_and_quiet_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "BLOCK_BYTES", 600)
    monkeypatch.setattr(logging.getLogger("consumer"), "disabled", True)
    logging.getLogger("consumer.flow").setLevel(logging.CRITICAL)


@pytest.mark.parametrize("first", range(0, HISTORIES, 250))
def test_random_histories_keep_the_invariants(first: int) -> None:
    for seed in range(first, first + 250):
        world = World(History(seed))
        try:
            world.run()
        except AssertionError as error:
            history = "\n".join(world.log[-30:])
            pytest.fail(f"seed {seed}: {error}\n{history}")


def test_histories_meet_every_kind_of_event() -> None:
    lines: list[str] = []
    for seed in range(60):
        world = World(History(seed))
        world.run()
        assert len(world.faults) >= 5
        assert len(world.plan.arrays) >= 3
        assert sum(len(letter.tiles) for letter in world.plan.letters) >= 50
        lines += world.log
    whole = "\n".join(lines)
    for event in (
        "complete",
        "pressure, merged",
        "idle",
        "age",
        "crash",
        "channel lost",
        "fails",
        "hangs",
    ):
        assert event in whole, event


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_is_a_history(seed: int) -> None:
    first, second = World(History(seed)), World(History(seed))
    first.run()
    second.run()
    assert first.log == second.log


@pytest.mark.parametrize("seed", range(5))
def test_a_history_can_be_played_back(seed: int) -> None:
    first = World(History(seed))
    first.run()
    second = World(first.history)
    second.run()
    assert first.log == second.log


def _acknowledges_before_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    write = World.write

    def early(self: World, wanted: Write, done: Callable[..., None]) -> None:
        write(self, wanted, lambda *_: None)
        self.posted.append(lambda: done(Written(0, 0, 0.0), None))

    monkeypatch.setattr(World, "write", early)


def _counts_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Coverage, "missing", lambda _self, within: [within])


def _merges_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Assembler._start

    def blind(self: Assembler, *arguments: Any) -> Write:
        write = start(self, *arguments)
        write.merge = False
        return write

    monkeypatch.setattr(Assembler, "_start", blind)


def _ignores_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Assembler, "_room_for", lambda _self, _nbytes: True)


def _forgets_a_delivery_on_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Assembler._settle

    def forgetful(
        self: Assembler, block: Block, deliveries: Iterable[DeliveryId]
    ) -> list[DeliveryId]:
        return settle(self, block, deliveries)[1:]

    monkeypatch.setattr(Assembler, "_settle", forgetful)


def _takes_a_failed_write_for_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Flow, write: Write, *_: Any) -> None:
        for identity in self.assembler.wrote(write):
            self._acknowledge(identity)
        self.advance()

    monkeypatch.setattr(Flow, "_written", careless)


def _writes_a_block_twice_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Assembler, "_ready", lambda _self, block, _paused: block.buffer is not None)


def _keeps_a_base_with_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = Assembler.wrote

    def partial_base(self: Assembler, write: Write) -> list[DeliveryId]:
        if write.merge:
            for hole in write.filled.missing(Box.of_shape(write.box.shape)):
                write.buffer[hole.slices] = 0
        return wrote(self, write)

    monkeypatch.setattr(Assembler, "wrote", partial_base)


def _writes_all_of_a_partly_filled_block(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Assembler._start

    def generous(self: Assembler, block: Block, *arguments: Any) -> Write:
        write = start(self, block, *arguments)
        write.filled = Coverage([Box.of_shape(block.box.shape)])
        return write

    monkeypatch.setattr(Assembler, "_start", generous)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(_acknowledges_before_commit, id="invariant-1-acknowledge-before-commit"),
        pytest.param(_takes_a_failed_write_for_done, id="invariant-1-failed-write-taken-for-done"),
        pytest.param(_counts_tiles, id="invariant-2-completeness-by-counting"),
        pytest.param(_writes_a_block_twice_at_once, id="invariant-2-second-write-of-a-block"),
        pytest.param(_keeps_a_base_with_holes, id="invariant-2-base-with-holes"),
        pytest.param(_merges_without_reading, id="invariant-3-merge-without-reading"),
        pytest.param(_writes_all_of_a_partly_filled_block, id="invariant-3-writes-unfilled-boxes"),
        pytest.param(_ignores_the_budget, id="invariant-5-budget-ignored"),
        pytest.param(_forgets_a_delivery_on_flush, id="invariant-7-delivery-forgotten"),
    ],
)
def test_a_deliberate_fault_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    for seed in range(SEEDS_UNTIL_FOUND):
        try:
            World(History(seed)).run()
        except (AssertionError, KeyError):
            return
    pytest.fail(f"not found within {SEEDS_UNTIL_FOUND} histories")
