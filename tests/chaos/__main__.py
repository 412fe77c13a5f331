"""Lets faults happen to real consumers on a real broker, and looks for what is lost."""

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from chaos import report
from chaos.catalogue import PROOFS, SCENARIOS, SOAK
from chaos.runs import LONGEST_LINE, Outcome, run, soak
from chaos.stage import WITHOUT, Options, start_broker
from consumer.testing import BrokerMissing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scenarios and return the exit code: 0 where every row is as it must be."""
    # An exception, so that brokers, consumers and mounts are ended.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    given = parse(arguments)
    folder = given.output / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = Options(folder.resolve(), given.quick, given.seed, given.without)
    print(f"seed {given.seed}", flush=True)
    began, outcomes, results = time.monotonic(), [], _results(given)
    try:
        for outcome in _played(given, options):
            outcomes.append(outcome)
            report.write(results, outcome, options)
            if not good(outcome, given):
                name = outcome.row.name
                print(f'again: make chaos ARGS="--scenario {name} {_repeat(given)}"', flush=True)
    except BrokerMissing as error:
        print(error, file=sys.stderr)
        return 2
    report.show(outcomes)
    print(f"{time.monotonic() - began:.0f} s; {results}")
    all_good = all(good(outcome, given) for outcome in outcomes)
    if all_good:
        shutil.rmtree(folder)
    else:
        print(f"logs and stores are left in {folder}")
    return int(not all_good)


def _played(given: argparse.Namespace, options: Options) -> Iterator[Outcome]:
    """Yield what became of each scenario that was asked for, in the catalogue's order."""
    names = given.scenario or PROOFS.get(given.without) or [each.name for each in SCENARIOS]
    with start_broker() as broker:
        for scenario in SCENARIOS:
            if scenario.name in names:
                outcome = run(scenario, broker, options)
                _tell(outcome)
                yield outcome
        if SOAK.name in names:
            outcome = soak(broker, options, given.minutes)
            _tell(outcome)
            yield outcome


def _results(given: argparse.Namespace) -> Path:
    """Return where the rows go; those with something switched off say nothing of the product."""
    name = f"without-{given.without}" if given.without else "latest"
    return Path(given.output / f"{name}.json")


def _tell(outcome: Outcome) -> None:
    print(report.line(outcome), flush=True)
    for problem in outcome.problems:
        print(f"  {problem}"[:LONGEST_LINE], flush=True)


def good(outcome: Outcome, given: argparse.Namespace) -> bool:
    """Whether a row is as it must be: clean, or damaged where something is switched off.

    That the machine does not permit a scenario is good enough only in short or where that was
    asked for, and never in CI.
    """
    if outcome.not_run is not None:
        return bool(given.quick or given.skip_impossible) and not os.environ.get("CI")
    return outcome.damaged if given.without else outcome.clean


def _repeat(given: argparse.Namespace) -> str:
    without = f" --without {given.without}" if given.without else ""
    return f"--seed {given.seed}{' --quick' if given.quick else ''}{without}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was given."""
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
        help="switch this off: the scenarios given must then find tiles lost or voxels wrong",
    )
    parser.add_argument(
        "--skip-impossible",
        action="store_true",
        help="what the machine does not permit is no failure; it is none with --quick, outside CI",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("chaos-results"), help="folder, on the disk to try"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
