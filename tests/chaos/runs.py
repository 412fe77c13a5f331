"""Plays a scenario from start to end; what it raises becomes a line of its outcome."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from chaos.catalogue import SOAK, Scenario
from chaos.product import NotRun
from chaos.stage import Options, Stage
from chaos.verdict import Row, finish
from consumer.testing import RabbitMQ

# Printed of a problem at most.
LONGEST_LINE = 2000


@dataclass(frozen=True)
class Outcome:
    """What became of a scenario.

    Attributes
    ----------
    wanted : int
        How many faults there should have been; 0: any.
    not_run : NotRun or None
        Why it could not be run at all; it counts as nothing then.
    recoveries : sequence of float
        Seconds from faults until the work of the victims went on; see `chaos.stage.Stage`.
    """

    row: Row
    wanted: int
    not_run: NotRun | None = None
    recoveries: Sequence[float] = ()
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def clean(self) -> bool:
        """Whether it ran as it should and found nothing."""
        return self._ran and self.row.clean

    @property
    def damaged(self) -> bool:
        """Whether it ran as it should and found tiles lost or voxels wrong."""
        return self._ran and any((self.row.lost, self.row.corrupt, self.row.foreign))

    @property
    def _ran(self) -> bool:
        """Whether all its faults happened, and nothing is wrong beside the row's figures."""
        counted = self.row.faults == self.wanted if self.wanted else self.row.faults > 0
        return self.not_run is None and counted and not self.problems


def run(scenario: Scenario, broker: RabbitMQ, options: Options) -> Outcome:
    """Play a scenario and look at what it left."""
    wanted = scenario.quick if options.quick else scenario.full
    began = time.monotonic()
    with Stage(scenario.name, broker, options) as stage:
        try:
            scenario.play(stage, wanted)
        except Exception as error:
            if isinstance(error, NotRun) and not stage.faults:
                return Outcome(Row(scenario.name), wanted, error)
            stage.problems.append(f"{type(error).__name__}: {error}")
            stage.notes.append(traceback.format_exc())
        row = _finished(stage)
    row = replace(row, seconds=round(time.monotonic() - began, 1))
    return Outcome(row, wanted, None, stage.recoveries, stage.problems, stage.notes)


def _finished(stage: Stage) -> Row:
    """Return the row, without anything published where it cannot be made up: that is not clean."""
    try:
        return finish(stage)
    except Exception as error:
        stage.problems.append(f"nothing can be said of the end: {type(error).__name__}: {error}")
        stage.notes.append(traceback.format_exc())
        return Row(stage.name, stage.faults)


def soak(broker: RabbitMQ, options: Options, minutes: float) -> Outcome:
    """Play rounds of all faults mixed, each with a seed of its own, and sum them up."""
    deadline = time.monotonic() + 60 * minutes
    total = Outcome(Row(SOAK.name), 0)
    while time.monotonic() < deadline:
        found = run(SOAK, broker, options)
        if found.not_run is not None:
            return _broken_off(total, found)
        total = _added(total, found, options.seed)
        print(f"soak seed {options.seed}: {'clean' if found.clean else 'NOT CLEAN'}", flush=True)
        if not found.clean:
            _keep(options, found)
        options = replace(options, seed=options.seed + 1)
    return total


def _broken_off(total: Outcome, found: Outcome) -> Outcome:
    """Return what became of a soak whose last round could not be run."""
    if not total.row.faults:
        return found
    return replace(total, problems=[*total.problems, f"a later round was not run: {found.not_run}"])


def _keep(options: Options, found: Outcome) -> None:
    """Keep the folder of a round, which the next would empty, and print what is wrong."""
    kept = options.folder / f"seed-{options.seed}"
    (options.folder / SOAK.name).rename(kept)
    for line in (str(found.row), *found.problems, *found.notes, f"left in {kept}"):
        print(f"  {line}"[:LONGEST_LINE], flush=True)


def _added(total: Outcome, found: Outcome, seed: int) -> Outcome:
    sums = {
        each.name: getattr(total.row, each.name) + getattr(found.row, each.name)
        for each in fields(Row)
        if each.name != "name"
    }
    return replace(
        total,
        row=Row(SOAK.name, **sums),
        recoveries=[*total.recoveries, *found.recoveries],
        problems=[*total.problems, *(f"seed {seed}: {problem}" for problem in found.problems)],
        notes=[*total.notes, *(f"seed {seed}: {note}" for note in found.notes)],
    )
