"""What the benchmark's figures rest on."""

import gc
import io
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report, rivals
from benchmarks.__main__ import turned
from benchmarks.cases import ARRAY, QUICK, STORE, Case
from benchmarks.rivals import RIVALS, DrainOnly, Rival, outline
from benchmarks.runs import CONSUMER, NOT_DURABLE, Run, spread, subscribed_at
from benchmarks.stages import Stages
from benchmarks.threads import NAMES, Usage, between, usages
from consumer import logs
from consumer.connection import Connection
from consumer.endpoint import Endpoint
from consumer.ledger_format import LEDGER_ID
from consumer.new_arrays import new_layout, new_metadata
from harness import wait_until
from watch import children, resident

MIB = 1 << 20
CASE = QUICK[0]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_the_array_is_the_one_that_the_consumer_would_make(case: Case, tmp_path: Path) -> None:
    entry = outline(case).entry
    made = json.loads(new_metadata(entry, new_layout(entry))[ARRAY].to_bytes())
    del made["attributes"][LEDGER_ID]

    case.create(tmp_path)

    assert json.loads((tmp_path / STORE / ARRAY / "zarr.json").read_text()) == made


@pytest.mark.parametrize("rival", ["per_tile", "tensorstore"])
def test_a_rival_opens_the_array_with_its_first_tile(rival: str, tmp_path: Path) -> None:
    made = RIVALS[rival](tmp_path, CASE)
    assert isinstance(made, Rival)
    made.loop.close()

    assert not list(tmp_path.iterdir())


def test_draining_receives_with_the_consumers_own_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[Endpoint] = []
    monkeypatch.setattr(rivals, "give_memory_back", lambda: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setattr(Connection, "open", lambda self: opened.append(self._endpoint))
    drain = DrainOnly(tmp_path, CASE)
    drain.loop.close()

    drain.connect("broker:5672", print)

    assert opened == [Endpoint(hosts=("broker:5672",))]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the process logs, as lines of text; logging is as before afterwards."""
    root, written = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(sys, "stderr", written)
    logs.configure("INFO", "text")
    return written


def test_the_clock_begins_when_the_consumer_says_that_it_subscribed(log: io.StringIO) -> None:
    logging.getLogger("consumer.service").info("started")
    assert subscribed_at(log.getvalue()) is None

    before = time.time()
    logging.getLogger("consumer.subscription").info("subscribed", extra={"queue": "tiles.00"})
    after = time.time()

    began = subscribed_at(log.getvalue())
    assert began is not None
    assert before - 0.001 <= began <= after


WAIT = "import sys; sys.stdin.read()"
TOUCH = """
import mmap, sys
memory = mmap.mmap(int(sys.argv[1]), 0)
memory[:] = bytes(len(memory))
print(flush=True)
sys.stdin.read()
"""


def touching(memory: int) -> "subprocess.Popen[str]":
    """Start a process that maps memory and has touched all of it."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", TOUCH, str(memory)]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=[memory], text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def test_memory_that_processes_share_counts_once() -> None:
    memory = os.memfd_create("shared")
    os.ftruncate(memory, 64 * MIB)
    with touching(memory) as one, touching(memory) as other:
        alone = [resident([process.pid]) for process in (one, other)]
        both = resident([one.pid, other.pid])
    os.close(memory)

    assert min(alone) > 64 * MIB
    assert max(alone) < both < sum(alone) - 64 * MIB


def test_children_are_watched_too() -> None:
    with subprocess.Popen([sys.executable, "-c", WAIT], stdin=subprocess.PIPE) as child:
        assert child.pid in children(os.getpid())
    assert child.pid not in children(os.getpid())


def test_a_folder_whose_folders_are_spread_can_still_be_used(tmp_path: Path) -> None:
    spread(tmp_path)
    (tmp_path / "run").mkdir()

    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_the_way_through_the_flow_can_be_measured(tmp_path: Path) -> None:
    Stages(replace(CASE, shape=(1024, 1024)), tmp_path)._flow()


def test_each_writer_takes_every_place() -> None:
    rounds = [turned(["a", "b", "c"], number) for number in range(6)]

    assert [sorted(order) for order in rounds] == [["a", "b", "c"]] * 6
    assert all({order[place] for order in rounds[:3]} == {"a", "b", "c"} for place in range(3))


def test_ratios_are_the_consumers_rate_over_the_others() -> None:
    rates = {CONSUMER: 300, NOT_DURABLE: 400, "per_tile": 20, "tensorstore": 250}

    assert report.ratios({**rates, "drain_only": 1500, "write_only": 500}) == {
        "tensorstore": 1.2,
        "per_tile": 15,
        "drain_then_write": 0.8,
        "slower": 0.6,
        NOT_DURABLE: 0.75,
    }


def test_pairs_are_compared_round_by_round() -> None:
    ours, others = [Run(1, 0, 0), Run(4, 0, 0)], [Run(2, 0, 0), Run(4, 0, 0)]

    assert report.paired(ours, others) == [2, 1]


NAMED = """
import sys, threading
threading.Thread(target=sys.stdin.read, name="encode_7").start()
print(flush=True)
"""


def test_what_threads_take_is_told_by_their_names() -> None:
    pipe, environment = subprocess.PIPE, {**os.environ, "PYTHONPATH": str(NAMES)}
    command = [sys.executable, "-c", NAMED]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        wait_until(lambda: ("owner", "encode") in usages(process.pid), "the thread's name")
        found = usages(process.pid)

    assert found.keys() == {("owner", "main"), ("owner", "encode")}
    assert found["owner", "main"].core > 0


SHORT_LIVED = """
import itertools, threading
print(flush=True)
for _ in itertools.count():
    threading.Thread(target=int).start()
"""


def test_threads_may_end_while_they_are_looked_at() -> None:
    command = [sys.executable, "-c", SHORT_LIVED]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            found = [usages(process.pid) for _ in range(1000)]
        finally:
            process.kill()

    assert all(("owner", "main") in each for each in found)


def test_what_threads_take_between_counts_those_that_began() -> None:
    began = Usage(0.25, 0.0, 0.0, 1, 0)
    before = {("writer", "disk"): Usage(1.0, 0.5, 0.5, 10, 2)}
    after = {
        ("writer", "disk"): Usage(1.5, 0.75, 0.5, 14, 3),
        ("writer", "file"): began,
    }

    assert between(before, after) == {
        ("writer", "disk"): Usage(0.5, 0.25, 0.0, 4, 1),
        ("writer", "file"): began,
    }
