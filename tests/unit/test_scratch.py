"""The scratch file gives back every body, in order, and takes no more than its size."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue

import pytest

from consumer.scratch import Scratch, ScratchFull, Stored

CAPACITY = 1000


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    made = Scratch(tmp_path, CAPACITY)
    yield made
    made.close()


class Outcomes:
    """What the scratch thread told of writes and reads, in order."""

    def __init__(self) -> None:
        self.writes: list[BaseException | None] = []
        self.reads: list[bytes] = []
        self.errors: list[BaseException] = []
        self.threads: set[int] = set()
        self._changed = threading.Condition()

    def written(self, error: BaseException | None) -> None:
        with self._changed:
            self.threads.add(threading.get_ident())
            self.writes.append(error)
            self._changed.notify()

    def read(self, ended: "Future[bytes]") -> None:
        error = ended.exception()
        with self._changed:
            self.threads.add(threading.get_ident())
            if error is None:
                self.reads.append(ended.result())
            else:
                self.errors.append(error)
            self._changed.notify()

    def wait(self, *, writes: int = 0, reads: int = 0, errors: int = 0) -> None:
        with self._changed:
            assert self._changed.wait_for(
                lambda: (
                    len(self.writes) >= writes
                    and len(self.reads) >= reads
                    and len(self.errors) >= errors
                ),
                timeout=60,
            )


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


def body(number: int, size: int) -> bytes:
    """Bytes that tell their number and position."""
    return bytes((number * 31 + i) % 251 for i in range(size))


@pytest.mark.parametrize("sizes", [[1], [10, 20, 30], [0, 5, 0], [CAPACITY]], ids=str)
def test_bodies_come_back_in_order(scratch: Scratch, outcomes: Outcomes, sizes: list[int]) -> None:
    bodies = [body(number, size) for number, size in enumerate(sizes)]
    for one in bodies:
        scratch.put(one, outcomes.written)
    for _ in bodies:
        scratch.get(outcomes.read)
    outcomes.wait(reads=len(bodies))
    assert outcomes.reads == bodies


def test_the_ring_goes_round_its_end_many_times(scratch: Scratch, outcomes: Outcomes) -> None:
    bodies = [body(number, 1 + number * 37 % 400) for number in range(200)]
    waiting = 0
    for one in bodies:
        while waiting + len(one) > CAPACITY:
            waiting -= scratch.get(outcomes.read).size
        scratch.put(one, outcomes.written)
        waiting += len(one)
    while waiting:
        waiting -= scratch.get(outcomes.read).size
    outcomes.wait(reads=len(bodies))
    assert outcomes.reads == bodies


def test_a_body_over_the_end_is_split_and_joined(scratch: Scratch, outcomes: Outcomes) -> None:
    scratch.put(body(0, 700), outcomes.written)
    scratch.get(outcomes.read)
    assert scratch.put(body(1, 600), outcomes.written) == Stored(700, 600)
    scratch.get(outcomes.read)
    outcomes.wait(reads=2)
    assert outcomes.reads[1] == body(1, 600)


def test_the_file_never_grows_beyond_its_size(scratch: Scratch, outcomes: Outcomes) -> None:
    for number in range(20):
        scratch.put(body(number, 600), outcomes.written)
        scratch.get(outcomes.read)
    outcomes.wait(reads=20)
    assert scratch._file.seek(0, 2) <= CAPACITY


def test_the_file_has_no_name(scratch: Scratch, tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []


def test_the_next_size_is_that_of_the_oldest_body(scratch: Scratch, outcomes: Outcomes) -> None:
    for size in (7, 9):
        scratch.put(bytes(size), outcomes.written)
    assert scratch.next_size == 7
    scratch.get(outcomes.read)
    assert scratch.next_size == 9


def test_a_body_that_does_not_fit_is_refused(scratch: Scratch, outcomes: Outcomes) -> None:
    scratch.put(bytes(600), outcomes.written)
    with pytest.raises(ScratchFull, match="1001 bytes pass the scratch of 1000"):
        scratch.put(bytes(401), outcomes.written)


def test_a_refused_body_leaves_the_others_whole(scratch: Scratch, outcomes: Outcomes) -> None:
    scratch.put(body(0, 600), outcomes.written)
    with pytest.raises(ScratchFull):
        scratch.put(body(1, 600), outcomes.written)
    scratch.put(body(2, 400), outcomes.written)
    for _ in range(2):
        scratch.get(outcomes.read)
    outcomes.wait(reads=2)
    assert outcomes.reads == [body(0, 600), body(2, 400)]


def test_a_scratch_of_no_size_refuses_every_body(tmp_path: Path, outcomes: Outcomes) -> None:
    scratch = Scratch(tmp_path, 0)
    for size in (1, 0):
        with pytest.raises(ScratchFull):
            scratch.put(body(0, size), outcomes.written)
    scratch.close()


def test_what_was_got_makes_room(scratch: Scratch, outcomes: Outcomes) -> None:
    scratch.put(body(0, CAPACITY), outcomes.written)
    scratch.get(outcomes.read)
    scratch.put(body(1, CAPACITY), outcomes.written)
    scratch.get(outcomes.read)
    outcomes.wait(reads=2)
    assert outcomes.reads == [body(0, CAPACITY), body(1, CAPACITY)]


def test_clearing_makes_room_and_forgets(scratch: Scratch, outcomes: Outcomes) -> None:
    for number in range(3):
        scratch.put(body(number, 300), outcomes.written)
    scratch.clear()
    scratch.put(body(9, CAPACITY), outcomes.written)
    scratch.get(outcomes.read)
    outcomes.wait(reads=1)
    assert outcomes.reads == [body(9, CAPACITY)]


def test_what_comes_after_clearing_goes_where_bodies_have_lain(
    scratch: Scratch, outcomes: Outcomes
) -> None:
    scratch.put(body(0, 300), outcomes.written)
    scratch.clear()
    assert scratch.put(body(1, 300), outcomes.written) == Stored(0, 300)
    scratch.get(outcomes.read)
    outcomes.wait(reads=1)
    assert outcomes.reads == [body(1, 300)]


def test_a_read_under_way_when_cleared_still_ends(scratch: Scratch, outcomes: Outcomes) -> None:
    with held_up(scratch) as go:
        scratch.put(body(0, 300), outcomes.written)
        scratch.get(outcomes.read)
        scratch.clear()
        scratch.put(body(1, CAPACITY), outcomes.written)
        go.set()
    outcomes.wait(reads=1, writes=2)
    assert outcomes.reads == [body(0, 300)]


def test_writes_are_told_in_order_from_another_thread(scratch: Scratch, outcomes: Outcomes) -> None:
    with held_up(scratch) as go:
        scratch.put(b"x", outcomes.written)
        go.set()
    outcomes.wait(writes=1)
    assert outcomes.writes == [None]
    assert threading.get_ident() not in outcomes.threads


def test_a_write_that_fails_is_told(
    scratch: Scratch, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("consumer.scratch.os.pwrite", full)
    scratch.put(b"x", outcomes.written)
    outcomes.wait(writes=1)
    assert isinstance(outcomes.writes[0], OSError)


def test_a_write_cut_short_is_continued(
    scratch: Scratch, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(
        "consumer.scratch.os.pwrite", lambda file, part, offset: whole(file, part[:7], offset)
    )
    scratch.put(body(0, 100), outcomes.written)
    scratch.get(outcomes.read)
    outcomes.wait(reads=1)
    assert outcomes.reads == [body(0, 100)]


def test_a_file_that_ends_early_is_an_error(scratch: Scratch, outcomes: Outcomes) -> None:
    scratch.put(body(0, 100), outcomes.written)
    outcomes.wait(writes=1)
    scratch._file.truncate(50)
    scratch.get(outcomes.read)
    outcomes.wait(errors=1)
    assert "the scratch file ended at 50" in str(outcomes.errors[0])


def test_it_keeps_up_while_little_is_unwritten(scratch: Scratch, outcomes: Outcomes) -> None:
    with held_up(scratch) as go:
        scratch.put(bytes(100), outcomes.written)
        kept_up = scratch.keeps_up(100, 0.0)
        go.set()
    assert kept_up


def test_it_does_not_keep_up_while_the_disk_hangs(scratch: Scratch, outcomes: Outcomes) -> None:
    with held_up(scratch) as go:
        scratch.put(bytes(101), outcomes.written)
        kept_up = scratch.keeps_up(100, 0.05)
        go.set()
    assert not kept_up


def test_it_keeps_up_again_once_written(scratch: Scratch, outcomes: Outcomes) -> None:
    with held_up(scratch) as go:
        scratch.put(bytes(101), outcomes.written)
        go.set()
        assert scratch.keeps_up(100, 10.0)


class held_up:  # noqa: N801 - reads as a statement
    """Keeps the scratch thread busy until the event is set."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._go = threading.Event()

    def __enter__(self) -> threading.Event:
        self._scratch._thread.submit(self._go.wait, 10)
        return self._go

    def __exit__(self, *_: object) -> None:
        self._go.set()


def test_a_body_that_is_skipped_gives_its_place_to_another(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, 10)
    read: SimpleQueue[bytes] = SimpleQueue()
    for body in (b"aaaa", b"bbbb"):
        scratch.put(body, lambda _error: None)
    scratch.skip()
    scratch.put(b"cccccc", lambda _error: None)
    for _ in range(2):
        scratch.get(lambda ended: read.put(ended.result()))
    assert [read.get(timeout=60) for _ in range(2)] == [b"bbbb", b"cccccc"]
    scratch.close()
