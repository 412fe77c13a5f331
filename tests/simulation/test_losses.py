"""A consumer that loses a store again and again doubts that the broker still delivers to it."""

from itertools import pairwise

import pytest
from choices import History
from model_writer import Job, ModelWriter
from plan import plan_of
from world import World

from consumer.faults import Faults

GIVES_BACK = "was taken by another consumer again and again"


def _is_quiet(seed: int) -> bool:
    """Whether in a history nothing else ends a tenure: another process, a restart, a full house."""
    plan = plan_of(seed)
    few = len(plan.arrays) <= plan.settings.max_open_arrays
    return len(plan.owners) == 1 and not plan.ends_wider and few


SEEDS = [seed for seed in range(210, 400) if _is_quiet(seed)]


class Rivalled(World):
    """A history without other faults, in which another owner takes a store time and again.

    Parameters
    ----------
    losses : int
        How often in all.
    in_a_row : int
        How often before a write of the store succeeds.
    """

    def __init__(self, history: History, losses: int, in_a_row: int) -> None:
        super().__init__(history)
        self.faults = ["none besides"] * self.plan.faults
        self.store = self.stores[self.plan.arrays[0].key.store]
        self.losses = losses
        self.in_a_row = in_a_row
        self.lost = self.lost_at_once = 0
        self._rival = ""

    def _work(self, writer: ModelWriter, job: Job, steps: int = 0) -> None:
        rivalled = self.losses and self.lost < self.in_a_row and self._would_write(job)
        if rivalled:
            self.losses -= 1
            self.lost += 1
            self._take()
        before = len(self.log)
        super()._work(writer, job, steps)
        ended = [line for line in self.log[before:] if self._is_write(line)]
        if rivalled:
            self.lost_at_once = max(self.lost_at_once, sum("fails" in line for line in ended))
        elif any("is done" in line for line in ended):
            self.lost = 0

    def _would_write(self, job: Job) -> bool:
        """Whether blocks of the store are about to be committed, and it is not lost already."""
        return job.name == f"committing {self.store.key}" and self._rival not in self.store.live

    def _take(self) -> None:
        for _ in self.store.take():
            pass
        (self._rival,) = self.store.live

    def _is_write(self, line: str) -> bool:
        arrays = (key.path for key in self.arrays if key.store == self.store.key)
        return any(line.startswith(f"writing {path} ") for path in arrays)

    @property
    def given_back(self) -> int:
        """How often everything was given back for it."""
        return sum(GIVES_BACK in line for line in self.log)


def run(seed: int, losses: int, in_a_row: int) -> Rivalled:
    """Run a history in which there were so many losses."""
    world = Rivalled(History(seed), losses, in_a_row)
    world.run()
    assert not world.losses
    return world


@pytest.mark.parametrize(("losses", "times"), [(4, 0), (5, 1), (9, 1), (10, 2)])
def test_everything_is_given_back_at_each_fifth_loss_in_a_row(losses: int, times: int) -> None:
    found = [run(seed, losses, losses).given_back for seed in SEEDS]
    assert found == [times] * len(SEEDS)


def test_losses_with_a_write_between_are_not_in_a_row() -> None:
    assert sum(run(seed, 8, 4).given_back for seed in SEEDS) == 0


def test_writes_that_one_loss_fails_count_once() -> None:
    worlds = [run(seed, 4, 4) for seed in SEEDS]
    assert max(world.lost_at_once for world in worlds) >= 3
    assert sum(world.given_back for world in worlds) == 0


def test_each_loss_in_a_row_is_waited_for_longer() -> None:
    faults = Faults(1000.0)
    waits = []
    for _ in range(4):
        faults.note_loss("a.zarr")
        wait = faults.note("a.zarr", 0.0)
        assert wait is not None
        waits.append(wait)
        faults.note_opened("a.zarr")  # it could be opened again
    assert all(later > earlier for earlier, later in pairwise(waits))
