"""The writer process: what it is asked, what it answers, and what becomes of it."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import psutil
import pytest
import zarr

from consumer.arena import Arena
from consumer.blocks import ArrayKey, BlockKey, Reason, Write
from consumer.commit import Commit
from consumer.contract import build
from consumer.coverage import Box, Coverage
from consumer.errors import (
    ArrayMismatch,
    ConsumerError,
    Fenced,
    StopError,
    StorageFault,
    StoreRemoved,
    WriterLost,
)
from consumer.message import Outline
from consumer.settings import Settings
from consumer.storage import Storage
from faults import mounted
from harness import wait_until

KEY = ArrayKey("p/s.zarr", "a")
BLOCK = 8


class Bench:
    """A storage whose callbacks are run by whoever waits for them."""

    def __init__(self, root: Path) -> None:
        self.allows = True
        self.arena = Arena(1 << 20)
        self.posted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.stopped: list[StopError] = []
        settings = Settings(output_root=root, workers=2)
        self.storage = Storage(settings, self.arena, self.posted.put, self.stopped.append)
        self.writer = psutil.Process(self.storage.pid)

    def ask(self, call: Callable[..., None], *arguments: Any) -> tuple[Any, ConsumerError | None]:
        """Call and wait for what comes back."""
        answers: list[tuple[Any, ConsumerError | None]] = []
        call(*arguments, lambda result, error: answers.append((result, error)))
        self.turn_until(lambda: bool(answers))
        return answers[0]

    def turn_until(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Run what is posted until the condition holds."""
        while not condition():
            self.posted.get(timeout=timeout_s)()

    def open(self, **said: Any) -> tuple[Any, ConsumerError | None]:
        """Open the array."""
        tile = {"stitch_coords": [0, 0], "crop_size": [1, 1], "fill": 0}
        fields = {
            "store": KEY.store,
            "array": KEY.path,
            "axes": "YX",
            "shape": [BLOCK, 2 * BLOCK],
            "dtype": "uint16",
            "chunks": [4, 4],
            "shards": [BLOCK, BLOCK],
            "tiles": [tile],
        }
        outline = Outline(build(fields | said), (), ())
        answer = self.ask(self.storage.open, outline, 1 << 20)
        if self.allows and answer[0] is not None and answer[0].taken:
            self.storage.allow(KEY.store, answer[0].taken)
        return answer

    def write(
        self, block: int, value: int, *filled: Box
    ) -> tuple[Write, tuple[Any, ConsumerError | None]]:
        """Write a block whose filled boxes hold a value, and whose holes are garbage."""
        write = self.block(block, value, *filled)
        return write, self.ask(self.storage.write, write)

    def block(self, block: int, value: int, *filled: Box) -> Write:
        """Return a block to be written."""
        box = Box((0, block * BLOCK), (BLOCK, (block + 1) * BLOCK))
        taken = self.arena.take(BLOCK * BLOCK * 2)
        assert taken is not None
        buffer = taken.view(np.uint16).reshape(BLOCK, BLOCK)
        buffer[...] = 0xDEAD
        coverage = Coverage(filled or [Box.of_shape(buffer.shape)])
        for each in coverage:
            buffer[each.slices] = value
        merge = coverage.voxels < box.volume
        key = BlockKey(KEY, (0, block))
        return Write(key, box, buffer, coverage, merge, Reason.COMPLETE, set(), 0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        bench.storage.close()
        assert not bench.writer.is_running()


def test_a_block_is_written_from_the_shared_memory(bench: Bench, tmp_path: Path) -> None:
    opened, error = bench.open()
    assert error is None
    assert opened.array.key == KEY
    assert opened.array.layout.grid.block == (BLOCK, BLOCK)
    _, (written, error) = bench.write(1, 7)
    assert error is None
    assert written.encoded == BLOCK * BLOCK * 2
    assert written.committed == sum(
        file.stat().st_size for file in (tmp_path / KEY.store / KEY.path / "c").rglob("*/1")
    )
    stored = np.asarray(zarr.open_array(tmp_path / KEY.store, path=KEY.path)[:])
    assert (stored[:, BLOCK:] == 7).all()
    assert (stored[:, :BLOCK] == 0).all()


def test_the_holes_of_a_buffer_are_filled_with_what_is_stored(bench: Bench, tmp_path: Path) -> None:
    bench.open()
    bench.write(0, 5)
    write, (_, error) = bench.write(0, 9, Box((1, 2), (3, 8)))
    assert error is None
    wanted = np.full((BLOCK, BLOCK), 5, np.uint16)
    wanted[1:3, 2:8] = 9
    assert np.array_equal(write.buffer, wanted)
    stored = np.asarray(zarr.open_array(tmp_path / KEY.store, path=KEY.path)[:, :BLOCK])
    assert np.array_equal(stored, wanted)


def test_errors_come_back_as_what_they_are(bench: Bench, tmp_path: Path) -> None:
    bench.open()
    bench.write(0, 1)
    _, error = bench.open(array="a/b", store=KEY.store)
    assert isinstance(error, ArrayMismatch)
    assert "'a'" in str(error)
    (tmp_path / KEY.store / KEY.path / "zarr.json").unlink()
    _, (_, error) = bench.write(0, 1)
    assert isinstance(error, StoreRemoved)


def test_the_last_array_of_a_store_closes_the_store(bench: Bench, tmp_path: Path) -> None:
    first = bench.open()[0].taken
    assert first
    assert bench.open(array="second")[0].taken is None
    for path in ("a", "second"):
        bench.storage.close_array(ArrayKey(KEY.store, path))
    bench.turn_until(lambda: bench.storage.idle)
    assert not (tmp_path / ".tiles" / KEY.store).exists()
    assert bench.open()[0].taken not in {None, first}


def test_nothing_is_committed_before_it_is_allowed(bench: Bench, tmp_path: Path) -> None:
    bench.allows = False
    opened, _ = bench.open()
    answers: list[Any] = []
    bench.storage.write(bench.block(1, 7), lambda *answer: answers.append(answer))
    bench.storage.allow(KEY.store, "of another tenure")
    with pytest.raises(Empty):
        bench.turn_until(lambda: bool(answers), timeout_s=0.5)
    assert not (tmp_path / KEY.store).exists()
    bench.storage.allow(KEY.store, opened.taken)
    bench.turn_until(lambda: bool(answers))
    assert answers[0][1] is None
    assert (tmp_path / KEY.store / KEY.path / "zarr.json").exists()


def test_what_waited_in_vain_is_fenced(bench: Bench, tmp_path: Path) -> None:
    bench.allows = False
    bench.open()
    answers: list[Any] = []
    bench.storage.write(bench.block(1, 7), lambda *answer: answers.append(answer))
    bench.storage.close_array(KEY)
    bench.turn_until(lambda: bool(answers))
    assert isinstance(answers[0][1], Fenced)
    bench.turn_until(lambda: bench.storage.idle)
    assert list(tmp_path.rglob("*.json")) == []


def test_a_writer_that_dies_is_reported_with_what_to_do(bench: Bench) -> None:
    bench.open()
    bench.writer.kill()
    bench.turn_until(lambda: bool(bench.stopped))
    assert isinstance(bench.stopped[0], WriterLost)
    assert "signal 9" in str(bench.stopped[0])
    assert "TILES_MEMORY_BUDGET_BYTES" in str(bench.stopped[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_writer_leaves_signals_to_its_owner(bench: Bench, number: int) -> None:
    bench.open()
    bench.writer.send_signal(number)
    assert bench.write(0, 3)[1][1] is None
    assert not bench.stopped


def test_a_stopped_writer_keeps_nobody_waiting(bench: Bench) -> None:
    bench.open()
    bench.writer.suspend()
    answers: list[Any] = []

    def ask() -> None:
        for _ in range(2000):
            bench.storage.probe(lambda *answer: answers.append(answer))

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            asked.result(60)
        finally:
            bench.writer.resume()
    bench.turn_until(lambda: len(answers) == 2000)


def test_the_age_of_the_oldest_request_grows_while_the_writer_is_stopped(bench: Bench) -> None:
    assert bench.storage.oldest_s == 0
    bench.writer.suspend()
    answers: list[Any] = []
    bench.storage.probe(lambda *answer: answers.append(answer))
    wait_until(lambda: bench.storage.oldest_s > 0.2, "an age")
    bench.writer.resume()
    bench.turn_until(lambda: bool(answers))
    assert bench.storage.oldest_s == 0


def test_a_root_that_is_mounted_no_more_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(ExitStack())
            disk.enter_context(mounted("tmpfs", root))
        except PermissionError as error:
            pytest.skip(str(error))
        bench = Bench(root)
        stack.callback(bench.storage.close)
        assert bench.open()[1] is None
        assert bench.write(0, 3)[1][1] is None
        disk.close()
        assert isinstance(bench.write(1, 3)[1][1], Fenced)
        begun = bench.ask(bench.storage.begin_lone, ["a suspect"])
        for _, found in (bench.open(), bench.ask(bench.storage.probe), begun):
            assert isinstance(found, StorageFault)
            assert "is on another file system than before" in str(found)
        assert list(root.iterdir()) == []


def test_the_probe_says_how_much_room_there_is(bench: Bench, tmp_path: Path) -> None:
    room, error = bench.ask(bench.storage.probe)
    assert error is None
    assert room.size == shutil.disk_usage(tmp_path).total
    assert 0 <= room.free <= room.size


_OWNER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from unit.test_storage import Bench
bench = Bench(Path({root!r}))
bench.open()
print(bench.storage.pid, flush=True)
time.sleep(60)
"""


def test_the_writer_ends_with_its_owner(tmp_path: Path) -> None:
    program = _OWNER.format(tests=str(Path(__file__).parents[1]), root=str(tmp_path))
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        writer = psutil.Process(int(owner.stdout.readline()))
        assert writer.is_running()
    finally:
        owner.kill()
        owner.communicate()
    assert psutil.wait_procs([writer], timeout=60)[1] == []


# -- what was found while another had the store -------------------------------------------------

HALF = Box((0, 0), (BLOCK, 4))


def taken_by_another(root: Path, name: str) -> None:
    """Take the store as another consumer does, and put there what would be refused."""
    other = Commit.take(root, KEY.store, file_mode=0o644, folder_mode=0o755)
    other.commit({name: [b"what another is about to write"]})


@pytest.mark.parametrize(
    "name", ["a/c/0/0", "a/zarr.json", "zarr.json"], ids=["a chunk", "metadata", "a group"]
)
def test_an_array_that_another_makes_meanwhile_is_fenced_and_not_refused(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    bench.open()
    taken_by_another(tmp_path, name)
    _, (_, error) = bench.write(0, 7)
    assert isinstance(error, Fenced)


@pytest.mark.parametrize("name", ["b/c/0/0", "b/zarr.json"], ids=["a chunk", "metadata"])
def test_an_array_that_is_opened_while_another_makes_it_is_fenced_and_not_refused(
    bench: Bench, tmp_path: Path, name: str
) -> None:
    bench.open()
    taken_by_another(tmp_path, name)
    _, error = bench.open(array="b")
    assert isinstance(error, Fenced)


def test_a_block_that_another_writes_meanwhile_is_fenced_and_not_damaged(
    bench: Bench, tmp_path: Path
) -> None:
    bench.open()
    bench.write(0, 7)
    taken_by_another(tmp_path, "a/c/0/0")
    _, (_, error) = bench.write(0, 8, HALF)
    assert isinstance(error, Fenced)


def test_what_is_refused_in_ones_own_epoch_stays_refused(bench: Bench, tmp_path: Path) -> None:
    bench.open()
    foreign = tmp_path / KEY.store / "b/c/0/0"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"nobody knows whose")
    _, error = bench.open(array="b")
    assert isinstance(error, ArrayMismatch)
