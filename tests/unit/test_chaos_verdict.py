"""What the fault suite says of parked messages, of how consumers end and of how they recover."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast

import pytest

from bad_messages import BAD, FULL, NESTED, Case
from chaos import crashes, product
from chaos import fleet as fleets
from chaos.fleet import Fleet
from chaos.images import STORES, image, settling
from chaos.poison import reasons_of
from chaos.producer import Bad
from chaos.stage import Options, Stage
from chaos.verdict import Copy, wrongly_parked
from consumer.errors import KillsConsumer
from consumer.testing import RabbitMQ
from harness import ConsumerProcess, wait_until

NO_BROKER = cast("RabbitMQ", None)
PUBLISHED = Counter({b"bad": 2})
KNOWN = {b"bad": Bad(lambda _: None, frozenset({"invalid"}))}


@pytest.mark.parametrize(
    ("parked", "wrong"),
    [
        ({(b"bad", "invalid"): 2}, 0),
        ({(b"bad", "invalid"): 3}, 0),
        ({(b"bad", "invalid"): 1}, 1),
        ({}, 2),
        ({(b"bad", "invalid"): 1, (b"bad", "kills_consumer"): 1}, 1),
        ({(b"bad", ""): 2}, 2),
        ({(b"bad", "invalid"): 2, (b"tile", "kills_consumer"): 1}, 1),
    ],
    ids=["each", "one twice", "one lost", "all lost", "as a killer", "dead-lettered", "good"],
)
def test_each_publish_is_parked_for_its_own_reason(parked: dict[Copy, int], wrong: int) -> None:
    found = wrongly_parked(KNOWN, PUBLISHED, Counter(parked))
    assert found.wrong == wrong
    assert bool(found.notes) == bool(wrong)


@pytest.mark.parametrize("case", [BAD[0], FULL[0], NESTED[0]], ids=lambda case: case.name)
def test_no_bad_message_may_be_parked_as_one_that_kills(case: Case) -> None:
    assert KillsConsumer.reason not in reasons_of(case)


def test_what_has_a_reason_and_cannot_expire_is_not_dead_lettered() -> None:
    dead_lettered = {case.name for case in BAD if "" in reasons_of(case)}
    assert dead_lettered == {"expiration"}


@pytest.mark.parametrize("store", STORES)
def test_what_settles_a_store_is_part_of_no_image_that_was_sent(store: str) -> None:
    sent = {(each.store, each.path) for each in map(image, range(255))}
    assert (store, settling(store).path) not in sent


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Two consumers that are not started."""
    return Fleet(RabbitMQ(), tmp_path, tmp_path, "tiles", count=2)


def run(consumer: ConsumerProcess, code: str) -> None:
    """Have a consumer be a process that does something else."""
    consumer.process = subprocess.Popen([sys.executable, "-c", code])


def has_ended(consumer: ConsumerProcess) -> None:
    """Wait until it has ended by itself."""
    wait_until(lambda: not fleets.running(consumer), "its end")


OWNER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE).wait()
sys.exit({code})
"""
HANGS = "import time; time.sleep(600)"
DIES = "import os; os.kill(os.getpid(), 9)"


def test_a_consumer_that_was_killed_has_the_exit_code_of_that(fleet: Fleet) -> None:
    first, _ = fleet.consumers
    run(first, HANGS)
    fleet.kill(first)
    assert fleet.wrong == []
    assert not fleets.running(first)


@pytest.mark.parametrize(("code", "right"), [(product.WRITER_LOST, True), (0, False), (1, False)])
def test_an_owner_whose_writer_was_killed_must_say_so(
    fleet: Fleet, code: int, *, right: bool
) -> None:
    first, _ = fleet.consumers
    run(first, OWNER.format(code=code))
    wait_until(lambda: len(fleets.processes(first)) == 2, "the writer")
    fleet.kill(first, owner=False)
    assert (fleet.wrong == []) == right


@pytest.mark.parametrize("code", [0, 3])
def test_a_consumer_that_ended_by_itself_is_told_when_it_is_killed(fleet: Fleet, code: int) -> None:
    first, _ = fleet.consumers
    run(first, f"raise SystemExit({code})")
    has_ended(first)
    fleet.kill(first)
    assert fleet.wrong == [f"tiles-0 ended with exit code {code} by itself"]


@pytest.mark.parametrize("code", [0, 3])
def test_a_consumer_that_ended_by_itself_is_told_at_the_end(fleet: Fleet, code: int) -> None:
    first, _ = fleet.consumers
    run(first, f"raise SystemExit({code})")
    has_ended(first)
    assert fleet.stop() == [f"tiles-0 ended with exit code {code} by itself"]


@pytest.mark.parametrize(
    ("code", "reviving", "right"),
    [
        (DIES, True, True),
        (DIES, False, False),
        ("raise SystemExit(1)", True, False),
        ("raise SystemExit(0)", True, False),
    ],
)
def test_a_consumer_that_is_revived_must_have_been_killed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, code: str, *, reviving: bool, right: bool
) -> None:
    monkeypatch.setattr(ConsumerProcess, "start", lambda *_, **__: None)
    first, _ = fleet.consumers
    fleet.reviving = reviving
    run(first, code)
    has_ended(first)
    fleet.revive()
    assert (fleet.wrong == []) == right


def test_a_consumer_that_ends_otherwise_than_well_on_sigterm_is_told(fleet: Fleet) -> None:
    first, second = fleet.consumers
    run(first, HANGS)
    run(second, "import signal; signal.signal(15, lambda *_: exit(0)); print(); signal.pause()")
    wait_until(lambda: handles(second, signal.SIGTERM), "its handler")
    assert fleet.stop() == [f"tiles-0 ended with exit code {-signal.SIGTERM} on SIGTERM"]


def test_a_consumer_that_was_told_to_stop_is_judged_once(fleet: Fleet) -> None:
    first, _ = fleet.consumers
    run(first, "pass")
    fleet.note_stop(first)
    assert fleet.stop() == []


def handles(consumer: ConsumerProcess, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    lines = Path(f"/proc/{consumer.pid}/status").read_text().splitlines()
    (caught,) = (line.split()[1] for line in lines if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("held", [True, False], ids=["active", "stand-by"])
def test_a_consumer_that_is_told_to_stop_is_not_revived_before_it_is_judged(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, held: bool
) -> None:
    started = []
    victim, other = fleet.consumers
    # Each is looked at twice: who has ended meanwhile would be revived before the second time.
    acknowledged = chain([0.0, 0.0], repeat(time.time() + 3600))

    def start(consumer: ConsumerProcess, **_: object) -> None:
        started.append((consumer, consumer.process))

    def look(_: ConsumerProcess) -> dict[str, float]:
        has_ended(victim)
        return {product.LAST_ACKNOWLEDGED: next(acknowledged)}

    monkeypatch.setattr(ConsumerProcess, "start", start)
    monkeypatch.setattr(ConsumerProcess, "wait_ready", lambda _: None)
    monkeypatch.setattr(fleets, "holds", lambda _: held)
    monkeypatch.setattr(crashes, "_some_more", lambda _: None)
    monkeypatch.setattr(fleets, "metrics", look)
    stage = Stage("soak", NO_BROKER, Options(tmp_path, quick=True, seed=1), fleets=[fleet])
    stage.chance = FirstOf()
    fleet.reviving = True
    run(victim, "import signal; signal.signal(15, lambda *_: exit(0)); print(); signal.pause()")
    run(other, HANGS)
    wait_until(lambda: handles(victim, signal.SIGTERM), "its handler")
    crashes.terminate_one(stage)
    assert (started, fleet.wrong) == ([(victim, None)], [])
    fleet.kill(other)


class FirstOf(random.Random):
    """Chooses the first of all."""

    def choice(self, seq: Any) -> Any:
        return seq[0]


def test_what_a_victim_acknowledges_by_itself_is_no_recovery(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, other = fleet.consumers
    told = {victim: iter([20.0] * 9), other: iter([9.0, 9.0, 13.0, 17.0])}
    monkeypatch.setattr(fleets, "running", lambda _: True)
    monkeypatch.setattr(fleets, "paused", lambda _: False)
    monkeypatch.setattr(fleets, "metrics", lambda x: {product.LAST_ACKNOWLEDGED: next(told[x])})
    assert fleet.wait_acknowledged(10.0, but=victim) == 13.0
    assert fleet.wait_acknowledged(10.0) == 20.0
