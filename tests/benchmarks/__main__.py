"""Measures the consumer and what else could be used, in turn, on one broker and one disk."""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.cases import FULL, QUICK
from benchmarks.runs import WRITERS, Bench, Run, broker_version
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
            bench = Bench(broker, folder, quick=options.quick)
            entries = []
            for case in cases:
                runs: dict[str, list[Run]] = {writer: [] for writer in WRITERS}
                for repeat in range(options.repeats):
                    # Each takes every place in the order: what one leaves to the disk is shared.
                    for writer in (*WRITERS[repeat:], *WRITERS[:repeat]):
                        found = bench.run(writer, case)
                        runs[writer].append(found)
                        rate = case.payload_bytes / 1e6 / found.seconds
                        print(f"{case.name} {writer} {rate:.0f} MB/s", flush=True)
                entries.append(report.figures(case, runs))
            report.write(options.output, entries, broker_version(broker))
    except BrokerMissing as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.show(entries)
    print(f"{time.monotonic() - began:.0f} s; {options.output / 'throughput.png'}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four cases, a quarter of the work")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each writer and case")
    parser.add_argument(
        "--case", action="append", choices=[c.name for c in FULL], help="only this one; repeatable"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("bench-results"), help="folder, on the disk to measure"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
