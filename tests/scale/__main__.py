"""Runs many replicas on many partitions, changes and breaks them, and says what became of it."""

import argparse
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from consumer.testing import BrokerMissing
from scale import report
from scale.catalogue import SCENARIOS
from scale.runs import Outcome, run
from scale.stage import Options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios and return the exit code: 0 where all is as it must be."""
    # An exception, so that brokers and consumers are ended.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    given = _options(arguments)
    folder = given.output / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = Options(folder.resolve(), given.quick, given.seed)
    # What the defaults change takes its time.
    usual = [each.name for each in SCENARIOS if not (given.quick and each.defaults)]
    names = given.scenario or usual
    print(f"seed {given.seed}", flush=True)
    began, outcomes = time.monotonic(), list[Outcome]()
    try:
        for scenario in SCENARIOS:
            if scenario.name in names:
                outcomes.append(run(scenario, options))
                report.write(given.output, outcomes)
                _tell(outcomes[-1])
    except BrokerMissing as error:
        print(error, file=sys.stderr)
        return 2
    report.show(outcomes)
    print(f"{time.monotonic() - began:.0f} s; {given.output / 'latest.json'}")
    if not any(outcome.problems for outcome in outcomes):
        shutil.rmtree(folder)
        return 0
    print(f"logs and stores are left in {folder}")
    return 1


def _tell(outcome: Outcome) -> None:
    state = "NOT AS IT MUST BE" if outcome.problems else "as it must be"
    ran = f"on RabbitMQ {outcome.rabbitmq}, {outcome.seconds:.0f} s"
    print(f"{outcome.scenario}: {state}, {ran}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m scale", description=__doc__)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--quick", action="store_true", help="fewer faults and fewer tiles")
    parser.add_argument(
        "--scenario", action="append", choices=names, help="only this one; repeatable"
    )
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 31), help="of every choice; default: any"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("scale-results"), help="folder for all that is written"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
