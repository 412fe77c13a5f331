"""Measures the consumer and what else could be used, in turn, on one broker and one disk."""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report, threads
from benchmarks.cases import FULL, QUICK, Case, find
from benchmarks.runs import CONSUMER, WRITERS, Bench, Run, broker_version
from consumer.testing import BrokerMissing, RabbitMQ


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    options = _options(arguments)
    cases = [c for c in (QUICK if options.quick else FULL) if c.name in (options.case or c.name)]
    folder = options.output / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    try:
        with RabbitMQ() as broker:
            bench = Bench(broker, folder, quick=options.quick, named=options.threads)
            if options.threads:
                for case in cases:
                    run = bench.run(CONSUMER, case)
                    threads.show(case.name, run.threads, case.payload_bytes, run.files)
            elif options.batching:
                report.show_pairs({CONSUMER: _measure_batching(bench, options.batching)})
            elif options.pairs:
                pairs = {c.name: _measure(bench, c, options.writers, options.pairs) for c in cases}
                report.show_pairs(pairs)
            else:
                entries = [
                    report.figures(case, _measure(bench, case, WRITERS, options.repeats))
                    for case in cases
                ]
                report.write(options.output, entries, broker_version(broker))
                report.show(entries)
    except BrokerMissing as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.monotonic() - began:.0f} s")
    return 0


def _measure(bench: Bench, case: Case, writers: Sequence[str], rounds: int) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {writer: [] for writer in writers}
    for number in range(rounds):
        for writer in turned(writers, number):
            run = bench.run(writer, case)
            runs[writer].append(run)
            print(report.line(case, writer, run), flush=True)
    return runs


def _measure_batching(bench: Bench, rounds: int) -> dict[str, list[Run]]:
    """Run the consumer on the same small tiles in turn, many in a message and one."""
    runs: dict[str, list[Run]] = {"small-batched": [], "small-single": []}
    for number in range(rounds):
        for name in turned(list(runs), number):
            case = find(name, quick=False)
            run = bench.run(CONSUMER, case)
            runs[name].append(run)
            print(report.line(case, CONSUMER, run), flush=True)
    return runs


def turned(writers: Sequence[str], number: int) -> list[str]:
    """Return the order of a round: each takes every place, since what one leaves is shared."""
    first = number % len(writers)
    return [*writers[first:], *writers[:first]]


def _writers(text: str) -> list[str]:
    names = text.split(",")
    if len(names) < 2 or not set(names) <= set(WRITERS):
        raise argparse.ArgumentTypeError(f"two or more of {', '.join(WRITERS)} (got {text!r})")
    return names


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four cases, a quarter of the work")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each writer and case")
    parser.add_argument(
        "--case", action="append", choices=[c.name for c in FULL], help="only this one; repeatable"
    )
    parser.add_argument(
        "--pairs", type=int, help="compare in so many rounds, by the ratios within each"
    )
    parser.add_argument(
        "--writers",
        type=_writers,
        default=[CONSUMER, "tensorstore"],
        help="with --pairs: the first and what it is compared with, separated by commas",
    )
    parser.add_argument(
        "--batching",
        type=int,
        metavar="ROUNDS",
        help="how much faster small tiles are with many in a message than with one",
    )
    parser.add_argument(
        "--threads", action="store_true", help="one run of the consumer, thread by thread"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("bench-results"), help="folder, on the disk to measure"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
