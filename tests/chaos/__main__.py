"""Lets faults happen to real consumers on a real broker, and looks for what is lost."""

import argparse
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from chaos import report
from chaos.catalogue import SCENARIOS, SOAK
from chaos.runs import LONGEST_LINE, Outcome, run, soak
from chaos.stage import WITHOUT, Options, start_broker
from consumer.testing import BrokerMissing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios and return the exit code: 0 where every row is clean."""
    # An exception, so that brokers, consumers and mounts are ended.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    given = _options(arguments)
    folder = given.output / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = Options(folder.resolve(), given.quick, given.seed, given.without)
    print(f"seed {given.seed}", flush=True)
    began, outcomes = time.monotonic(), []
    try:
        for outcome in _played(given, options):
            outcomes.append(outcome)
            report.write(given.output, outcomes)
            if not _good(outcome):
                name = outcome.row.name
                print(f'again: make chaos ARGS="--scenario {name} {_repeat(given)}"', flush=True)
    except BrokerMissing as error:
        print(error, file=sys.stderr)
        return 2
    report.show(outcomes)
    print(f"{time.monotonic() - began:.0f} s; {given.output / 'latest.json'}")
    good = all(map(_good, outcomes))
    if good:
        shutil.rmtree(folder)
    else:
        print(f"logs and stores are left in {folder}")
    return int(not good)


def _played(given: argparse.Namespace, options: Options) -> Iterator[Outcome]:
    """Yield what became of each scenario that was asked for, in the catalogue's order."""
    names = given.scenario or [scenario.name for scenario in SCENARIOS]
    with start_broker() as broker:
        for scenario in SCENARIOS:
            if scenario.name in names:
                outcome = run(scenario, broker, options)
                _tell(outcome)
                yield outcome
        if SOAK.name in names:
            yield soak(broker, options, given.minutes)


def _tell(outcome: Outcome) -> None:
    state = "not run" if outcome.not_run else "clean" if outcome.clean else "NOT CLEAN"
    print(f"{outcome.row.name}: {state}, {outcome.row.seconds:.0f} s", flush=True)
    for problem in outcome.problems:
        print(f"  {problem}"[:LONGEST_LINE], flush=True)


def _good(outcome: Outcome) -> bool:
    """Whether nothing speaks against it: what the machine does not permit cannot be run."""
    return outcome.not_run is not None or outcome.clean


def _repeat(given: argparse.Namespace) -> str:
    without = f" --without {given.without}" if given.without else ""
    return f"--seed {given.seed}{' --quick' if given.quick else ''}{without}"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m chaos", description=__doc__)
    names = [scenario.name for scenario in (*SCENARIOS, SOAK)]
    parser.add_argument("--quick", action="store_true", help="a tenth of the faults")
    parser.add_argument(
        "--scenario", action="append", choices=names, help="only this one; repeatable"
    )
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 31), help="of every choice; default: any"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long soak lasts")
    parser.add_argument(
        "--without",
        choices=WITHOUT,
        default="",
        help="switch this off, to see scenarios fail",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("chaos-results"), help="folder, on the disk to try"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
