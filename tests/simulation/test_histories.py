"""Random histories of one owner and of two keep the invariants; a seed always is one history."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from choices import History
from histories import first_failure, report, run_all, smallest
from plan import LEAST_ARRAYS, LEAST_FAULTS, LEAST_TILES, REAL_BODIES
from world import World

# `make simulation` runs all of them, with the machine to itself.
HISTORIES = 10_000 if os.environ.get("FULL") else 1_000

_PRINT_DIGESTS = """
import hashlib, sys
from choices import History
from world import World
for seed in map(int, sys.argv[1:]):
    world = World(History(seed))
    world.run()
    digest = hashlib.sha256(repr(world.log).encode())
    for array in world.arrays.values():
        digest.update(array.stored)
    print(seed, digest.hexdigest())
"""


@pytest.mark.timeout(1800)
def test_random_histories_keep_the_invariants(
    record_property: Callable[[str, object], None],
) -> None:
    ran = run_all(range(HISTORIES))
    record_property("histories", len(ran))
    failed = [each.seed for each in ran if each.failed]
    failure = first_failure(failed)
    if failure is not None:
        pytest.fail(report(smallest(failure)), pytrace=False)
    assert not failed
    assert len(ran) == HISTORIES
    assert min(each.tiles for each in ran) >= LEAST_TILES
    assert min(each.arrays for each in ran) >= LEAST_ARRAYS
    assert min(each.faults for each in ran) >= LEAST_FAULTS


@pytest.mark.parametrize(
    "event",
    [
        "publish",
        "for the first time",
        "again",
        "acknowledge",
        ", complete",
        ", pressure, merged",
        ", idle",
        ", age",
        "fault: crash",
        "fault: channel lost",
        "fault: open fails",
        "fault: read fails",
        "fault: write fails",
        "fault: write hangs",
        "fault: the queue goes over",
        "fault: connection lost unnoticed",
        "goes on",
        "notices that its connection is lost",
        "another consumer takes it at the same time",
        "is over",
        "given up meanwhile",
        "not yet done",
        "is complete",
        "gives everything back",
        "1 are handled alone",
        "4 are handled alone",
        "cut short",
        "are restarted",
    ],
)
def test_histories_meet_every_kind_of_event(event: str) -> None:
    assert any(event in line for seed in range(60) for line in _run(History(seed)).log)


@pytest.mark.parametrize("seed", range(5))
def test_a_history_can_be_written_down_and_played_back(seed: int) -> None:
    world = _run(History(seed))
    assert _run(History.parse(str(world.history))).log == world.log


def test_a_seed_is_one_history_whatever_ran_before_it_and_however_strings_are_hashed() -> None:
    seeds = range(REAL_BODIES - 100, REAL_BODIES + 200)
    upwards = _digests(seeds, hash_seed="1")
    downwards = _digests(reversed(seeds), hash_seed="2")
    assert len(set(upwards)) == len(seeds)
    assert upwards == downwards[::-1]


def _run(history: History) -> World:
    world = World(history)
    world.run()
    return world


def _digests(seeds: Iterable[int], hash_seed: str) -> list[str]:
    """Return a line for each seed, of what a process of its own makes of it."""
    ended = subprocess.run(
        [sys.executable, "-c", _PRINT_DIGESTS, *map(str, seeds)],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()
