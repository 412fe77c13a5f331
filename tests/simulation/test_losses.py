"""A consumer that loses a store again and again doubts that the broker still delivers to it."""

from itertools import pairwise

import pytest
from choices import History
from plan import plan_of
from world import Job, World

from consumer.errors import Fenced
from consumer.faults import Faults

GIVES_BACK = "was taken by another consumer again and again"
# Of histories in which no array is closed for another, which would end a tenure too.
SEEDS = [
    seed
    for seed in range(210, 400)
    if len(plan_of(seed).arrays) <= plan_of(seed).settings.max_open_arrays
]


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
        self.store = self.plan.arrays[0].key.store
        self.losses = losses
        self.in_a_row = in_a_row
        self.lost = self.lost_at_once = 0

    def _finish(self) -> None:
        job = next((job for job in self._at_work() if self._may_lose(job)), None)
        if job is None:
            before = list(self.jobs)
            super()._finish()
            ended = [job for job in before if job not in self.jobs]
            if any(self._is_of_store(job) and not job.fenced for job in ended):
                self.lost = 0
            return
        self.losses -= 1
        self.lost += 1
        self.jobs.remove(job)
        self.taken.pop(self.store, None)
        self.allowed.discard(self.store)
        others = [other for other in self.jobs if self._is_of_store(other)]
        for other in others:
            other.fenced = True
        self.lost_at_once = max(self.lost_at_once, len(others) + 1)
        job.done(None, Fenced("another took it"))

    def _may_lose(self, job: Job) -> bool:
        due = self.losses and self.lost < self.in_a_row
        return bool(due) and self._is_of_store(job) and not job.fenced

    def _is_of_store(self, job: Job) -> bool:
        return job.write is not None and job.array.key.store == self.store

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
        waits.append(faults.note("a.zarr", 0.0))
        faults.clear("a.zarr")  # it could be opened again
    assert all(later > earlier for earlier, later in pairwise(waits))
