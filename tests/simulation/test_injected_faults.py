"""Each deliberate fault is found, by its kind, and what is found is made small.

The faults are the product's, and where the simulator has a model in its place, the model's.
"""

import shlex
import subprocess
import sys
from collections.abc import Callable, Container, Sequence
from itertools import count
from typing import Any

import histories
import pytest
from histories import Failure, first_failure, main, report, smallest
from model_journal import ModelJournal
from model_store import LEDGER_AHEAD, ModelStore, Steps
from model_writer import ModelWriter, Objects
from owner import OF_A_LOST_CHANNEL

from consumer.assembler import Assembler
from consumer.blocks import ArrayKey, Block, DeliveryId, Reason, Write
from consumer.coverage import Box, Coverage
from consumer.flow import Flow
from consumer.inbox import Inbox
from consumer.ledger import Ledger
from consumer.lone import Lone
from consumer.requests import WriteBlock, Written
from consumer.rounds import WritableArray

SEEDS_UNTIL_FOUND = 2000

NOT_DURABLE = "acknowledged but not durable"
OUTSIDE = "changed outside every crop"
NOT_A_TILES = "not what a tile put there"
OVER_BUDGET = "over the budget"


def _found(kind: str) -> Failure:
    """Return the first history that fails in this way."""
    failure = first_failure(range(SEEDS_UNTIL_FOUND), kind)
    assert failure is not None, f"not found within {SEEDS_UNTIL_FOUND} histories"
    return failure


def test_acknowledging_before_the_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    start_writes = Flow._start_writes

    def eager(self: Flow) -> None:
        start_writes(self)
        for block in self.assembler._blocks.values():
            for identity in block.write.deliveries if block.write else ():
                self._broker.acknowledge(identity)

    monkeypatch.setattr(Flow, "_start_writes", eager)
    assert _found(NOT_DURABLE)


def test_taking_a_failed_write_for_done_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    written = Flow._written

    def careless(self: Flow, write: Write, result: Any, _error: Any, **opened: Any) -> None:
        written(self, write, result or Written(0, 0, 0.0), None, **opened)

    monkeypatch.setattr(Flow, "_written", careless)
    assert _found(NOT_DURABLE)


def test_completeness_by_counting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Coverage.add

    def counting(self: Coverage, box: Box) -> int:
        before = self.voxels
        add(self, box)
        self.voxels = before + box.volume
        return box.volume

    monkeypatch.setattr(Coverage, "add", counting)
    assert _found(OUTSIDE)


def test_a_second_write_of_a_block_in_flight_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def ready(_self: Assembler, block: Block, paused: Callable[[ArrayKey], bool]) -> bool:
        return block.buffer is not None and not paused(block.key.array)

    monkeypatch.setattr(Assembler, "_ready", ready)
    assert _found("two writes of a block at once")


def test_merging_without_reading_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Assembler._start

    def blind(self: Assembler, *arguments: Any) -> Write:
        write = start(self, *arguments)
        write.merge = False
        return write

    monkeypatch.setattr(Assembler, "_start", blind)
    assert _found(OUTSIDE)


def test_a_base_with_holes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = Assembler.wrote

    def holed(self: Assembler, write: Write) -> list[DeliveryId]:
        for hole in write.filled.missing(Box.of_shape(write.box.shape)) if write.merge else ():
            write.buffer[hole.slices] = 0
        return wrote(self, write)

    monkeypatch.setattr(Assembler, "wrote", holed)
    assert _found(OUTSIDE)


def test_writing_all_of_a_partly_filled_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Assembler._start

    def generous(self: Assembler, block: Block, *arguments: Any) -> Write:
        write = start(self, block, *arguments)
        write.filled = Coverage([Box.of_shape(block.box.shape)])
        return write

    monkeypatch.setattr(Assembler, "_start", generous)
    assert _found(OUTSIDE)


def _keep_buffers_of_failed_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Assembler.failed

    def keeping(self: Assembler, write: Write) -> None:
        failed(self, write)
        if write.key in self._blocks:
            self._blocks[write.key].whole_base = True

    monkeypatch.setattr(Assembler, "failed", keeping)


def test_a_buffer_kept_as_the_stored_block_after_a_failed_write_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _keep_buffers_of_failed_writes(monkeypatch)
    assert _found(OUTSIDE)


def test_a_buffer_given_to_another_block_after_a_failed_write_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = Assembler.failed

    def giving(self: Assembler, write: Write) -> None:
        failed(self, write)
        self._buffers.give(write.buffer)

    monkeypatch.setattr(Assembler, "failed", giving)
    assert _found(NOT_DURABLE)


def _ignore_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Assembler, "_room_for", lambda _self, _nbytes: True)


def test_ignoring_the_budget_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _ignore_the_budget(monkeypatch)
    assert _found(OVER_BUDGET)


def test_forgetting_a_delivery_on_flush_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wrote = Assembler.wrote

    def forgetful(self: Assembler, write: Write) -> list[DeliveryId]:
        settled = wrote(self, write)
        return settled if write.reason is Reason.COMPLETE else settled[1:]

    monkeypatch.setattr(Assembler, "wrote", forgetful)
    assert _found("stuck")


@pytest.mark.parametrize("waits_for", ["what came before", "its own end"])
def test_handling_suspects_together_with_others_is_found(
    monkeypatch: pytest.MonkeyPatch, waits_for: str
) -> None:
    if waits_for == "what came before":
        monkeypatch.setattr(Lone, "_is_under_way", lambda _self: False)
    else:
        lets_in = Lone.lets_in
        monkeypatch.setattr(
            Lone, "lets_in", lambda self, held: bool(self._batch) or lets_in(self, held)
        )
    assert _found("not alone")


def test_a_lone_handling_whose_end_is_not_told_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lone, "end", Lone._forget)
    assert _found("counted as cut short")


def test_an_entry_of_the_journal_that_outlives_a_failed_begin_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = count(1)

    def careless(self: ModelJournal, fingerprints: Sequence[str]) -> str:
        name = f"{next(names)}"
        self._put(name, fingerprints)
        return name

    monkeypatch.setattr(ModelJournal, "_write", careless)
    assert _found("counted as cut short")


# -- a channel that is lost, and what came on it ------------------------------------------------


def test_a_flow_that_keeps_deliveries_of_a_lost_channel_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channel_lost = Flow.channel_lost

    def keeping(self: Flow, channel: int) -> None:
        held = list(self._held.of(channel))
        channel_lost(self, channel)
        for each in held:
            self._held.add(each)

    monkeypatch.setattr(Flow, "channel_lost", keeping)
    assert _found(OF_A_LOST_CHANNEL)


def test_an_inbox_that_keeps_deliveries_of_a_lost_channel_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Inbox, "drop", lambda _self, _channel: None)
    assert _found(OF_A_LOST_CHANNEL)


def test_an_assembler_that_keeps_deliveries_of_a_lost_channel_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lose = Assembler.lose

    def keeping(self: Assembler, channel: int, stores: Container[str]) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Assembler, "forget", lambda _self, _deliveries: None)
            lose(self, channel, stores)

    monkeypatch.setattr(Assembler, "lose", keeping)
    assert _found(OF_A_LOST_CHANNEL)


# -- epochs and the ledger ----------------------------------------------------------------------


def test_epoch_names_that_recur_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelStore, "name", lambda _self, number, _identity: f"{number}-same")
    assert _found("written after the fence")


def test_a_base_kept_when_the_store_was_lost_to_another_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Assembler, "forget_stored", lambda _self, _array: None)
    assert _found(LEDGER_AHEAD)


def test_a_commit_before_the_broker_has_answered_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    start_round = ModelWriter._start_round

    def hasty(self: ModelWriter, tenure: Any) -> None:
        tenure.allowed = True
        start_round(self, tenure)

    monkeypatch.setattr(ModelWriter, "_start_round", hasty)
    assert _found("committed before the broker answered")


def test_the_ledger_before_the_data_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(
        _self: ModelWriter, data: Steps[None], ledgers: Steps[None]
    ) -> tuple[Steps[None], ...]:
        return ledgers, data

    monkeypatch.setattr(ModelWriter, "phases", turned)
    assert _found(LEDGER_AHEAD)


def test_a_ledger_that_keeps_what_a_failed_round_said_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Ledger, "undo", lambda _self: None)
    assert _found(LEDGER_AHEAD)


def test_a_round_without_its_ledger_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "dirty", lambda _self: {})
    assert _found("acknowledged before the ledger says so")


def test_a_ledger_that_suppresses_a_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = ModelWriter.objects

    def sparing(self: ModelWriter, array: WritableArray, write: WriteBlock, buffer: Any) -> Objects:
        known = array.ledger.is_whole(write.block)
        return {} if known else objects(self, array, write, buffer)

    monkeypatch.setattr(ModelWriter, "objects", sparing)
    assert _found("acknowledged but not written")


def test_skipping_the_merge_where_ledger_and_buffer_cover_the_block_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = Assembler._start

    def sparing(self: Assembler, block: Block, *arguments: Any) -> Write:
        covered = self._stored.completes(block.key, block.box, block.filled)
        write = start(self, block, *arguments)
        write.merge = write.merge and not covered
        return write

    monkeypatch.setattr(Assembler, "_start", sparing)
    assert _found(NOT_A_TILES)


def test_announcing_after_the_last_acknowledgement_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle = Flow._settle

    def late(self: Flow, array: ArrayKey, written: Written, settled: list[DeliveryId]) -> None:
        for identity in settled:
            self._receipts.acknowledge(identity)
        settle(self, array, written, [])

    monkeypatch.setattr(Flow, "_settle", late)
    assert _found("acknowledged before it is announced")


# -- what is found is made small ----------------------------------------------------------------


# Of about 20 messages, 50 tiles and 70 events, at most 5, 6 and 27 were left in 80 histories.
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(_keep_buffers_of_failed_writes, OUTSIDE, id="buffer-kept"),
        pytest.param(_ignore_the_budget, OVER_BUDGET, id="budget-ignored"),
    ],
)
def test_a_failing_history_is_made_small(
    fault: Callable[[pytest.MonkeyPatch], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    small = smallest(_found(kind))
    assert small.kind == kind
    messages, tiles, events = small.size
    assert messages <= 6
    assert tiles <= 8
    assert events <= 30


def test_making_a_history_small_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    _ignore_the_budget(monkeypatch)
    whole = _found(OVER_BUDGET)
    assert smallest(whole, seconds=0.0) == whole


def test_the_printed_command_repeats_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _keep_buffers_of_failed_writes(monkeypatch)
    printed = report(smallest(_found(OUTSIDE)))
    assert OUTSIDE in printed
    command = shlex.split(printed.splitlines()[-1].removeprefix("repeat it: "))
    assert command[:2] == [sys.executable, histories.__file__]
    assert main(command[2:]) == 1
    assert capsys.readouterr().out == printed + "\n"
    # A process of its own is without the fault.
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert ended.stdout == "holds\n"
