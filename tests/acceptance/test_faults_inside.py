"""Failpoints in whole processes: where they are passed, and what is said of them at start."""

import signal
from pathlib import Path

import psutil
import pytest

from conftest import MakeConsumer
from consumer.failpoints import STEPS
from faults import Image, Oracle, log_lines, wait_done
from harness import Channel, ConsumerProcess, wait_until

IMAGE = Image(0, "a.zarr", "x", (256, 256), 128, (("chunks", [1, 128, 128]),))
BLOCKS = Image(
    1, "b.zarr", "x", (512, 512), 128, (("chunks", [1, 128, 128]), ("shards", [1] + [128] * 2))
)
# Not passed where one image goes to a store that nobody held before.
NOT_PASSED = {"take.remove", "commit.remove", "ledger.remove", "release"}
# Fails beside another step, whose error is the one that is heard; or in cleaning up.
UNHEARD = {"commit.fsync", "remove.empty"}


@pytest.mark.parametrize("name", ["place", "acknowledge", "commit.rename", "release"])
def test_a_consumer_is_stopped_where_it_was_told_and_goes_on(
    make_consumer: MakeConsumer, producer: Channel, name: str
) -> None:
    with make_consumer(failpoints=f"{name}=stop#1") as consumer:
        family = [psutil.Process(consumer.pid), *psutil.Process(consumer.pid).children()]
        places = IMAGE.places()
        # A store is released as soon as its arrays are complete: here it is released at the end.
        producer.publish(IMAGE.message(*(places[:1] if name == "release" else places)))
        if name == "release":
            consumer.wait_settled(1)
            consumer.signal(signal.SIGTERM)
        wait_until(lambda: all(map(is_stopped, family)), "a stop of both")
        for process in family:
            process.send_signal(signal.SIGCONT)
        if name != "release":
            wait_done(consumer, producer)
            consumer.signal(signal.SIGTERM)
        assert consumer.process is not None
        assert consumer.process.wait(90) == 0


def is_stopped(process: psutil.Process) -> bool:
    """Whether it is stopped by a signal."""
    return bool(process.status() == psutil.STATUS_STOPPED)


def test_each_step_may_fail_once(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    oracle, steps = Oracle(), sorted(set(STEPS) - NOT_PASSED)
    points = ";".join(f"{name}=error:EIO#1" for name in steps)
    with make_consumer(failpoints=points, retry_max_s=0.1) as consumer:
        producer.publish(IMAGE.message(*IMAGE.places()))
        oracle.note(IMAGE, *IMAGE.places())
        wait_done(consumer, producer)
        unheard = {name for name in steps if not said(consumer, f"(errno 5) at '{name}'")}
        assert unheard <= UNHEARD
        assert consumer.stop() == 0
    assert oracle.wrong(tmp_path / "root") == 0


def test_a_store_that_fails_is_logged_once_for_each_try(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    oracle = Oracle()
    with make_consumer(failpoints="commit.write=error:EIO#60", retry_max_s=1) as consumer:
        for place in BLOCKS.places():
            producer.publish(BLOCKS.message(place))
            oracle.note(BLOCKS, place)
        wait_done(consumer, producer)
        failures = consumer.metrics()['tiles_retries_total{operation="write"}']
        assert 0 < said(consumer, "a store failed") < failures / 2
        assert consumer.stop() == 0
    assert oracle.wrong(tmp_path / "root") == 0


def test_a_consumer_says_at_its_start_that_it_has_failpoints(make_consumer: MakeConsumer) -> None:
    with make_consumer(failpoints="acknowledge=sleep:0") as consumer:
        assert said(consumer, "failpoints are set") == 1
    with make_consumer() as without:
        assert said(without, "failpoint") == 0


def said(consumer: ConsumerProcess, words: str) -> int:
    """How many lines of the log contain some words."""
    return sum(words in line for line in log_lines(consumer))
