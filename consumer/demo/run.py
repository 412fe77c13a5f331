"""The demo's own process: starts broker, consumer and producer, has the result judged, and ends
what it started.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.console import Console

from consumer.demo.brokers import Broker, broker
from consumer.demo.display import Tally, table
from consumer.demo.image import noisy_image
from consumer.demo.picture import draw
from consumer.demo.processes import DemoError, Signals, process, wait
from consumer.demo.watch import Counts, Program, tail, until_settled
from consumer.testing import free_port
from consumer.tiling import cuts

STORE = "demo/ihc_output.zarr"
ARRAY = "denoised"
TILE, OVERLAP = 256, 48
# Told to the producer and to the checker alike; all that the two have in common.
PREDICTION = (
    *("--tile", str(TILE), "--overlap", str(OVERLAP)),
    *("--weight", "0.1", "--iterations", "60"),
)
_GRACE_S = 10
_CHECK_S = 600.0
_RESULT, _PICTURE = "result.json", "stitched.png"
_CONSUMER_LOG, _PRODUCER_LOG, _CHECK_LOG = "consumer.log", "producer.log", "check.log"
_OURS = {
    *(Path(STORE).parts[0], ".tiles", _RESULT, _PICTURE),
    *(_CONSUMER_LOG, _PRODUCER_LOG, _CHECK_LOG),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What `result.json` says."""

    tiles: int
    acked: int
    parked: int
    identical: bool
    seconds: float
    tiles_per_second: float


@dataclass(frozen=True, slots=True)
class Folders:
    """What stays, and what is removed at the end."""

    output: Path
    scratch: Path

    @property
    def image(self) -> Path:
        """Return the input's file."""
        return self.scratch / "input.npy"

    @property
    def expected(self) -> Path:
        """Return the file of the stitch in memory."""
        return self.scratch / "expected.npy"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 where the store is what it should be."""
    options = _options(arguments)
    console = Console(highlight=False, soft_wrap=True)
    with Signals() as signals:
        try:
            result = _demonstrate(options, console, signals)
        except DemoError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    return 0 if result.identical and not result.parked else 1


def _demonstrate(options: argparse.Namespace, console: Console, signals: Signals) -> Result:
    _empty(options.output)
    with tempfile.TemporaryDirectory(prefix="tiles-demo-") as scratch:
        folders = Folders(options.output.resolve(), Path(scratch))
        np.save(folders.image, noisy_image(options.size))
        tiles = len(cuts(options.size, TILE, OVERLAP)) ** 2
        console.print(
            f"{tiles} tiles of an image of 3 x {options.size} x {options.size} voxels, float32"
        )
        console.print("starting RabbitMQ" if options.broker is None else f"on {options.broker}")
        with broker(options.broker) as found:
            signals.check()
            counts, seconds = _stitch(found, folders, tiles, console, signals)
        console.print("predicting and stitching once more in memory, to compare")
        identical = _identical(folders, signals)
        signals.check()
        result = _result(counts, identical, seconds)
        (folders.output / _RESULT).write_text(json.dumps(asdict(result), indent=2) + "\n")
        _draw(folders, options.size, identical=identical)
    console.print(table(_rows(result, options.output)))
    return result


def _empty(output: Path) -> None:
    """Remove what an earlier demo left, and refuse a folder with anything else."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        found = {entry.name: entry for entry in output.iterdir()}
    except OSError as error:
        raise DemoError(
            f"the output folder {output} cannot be used, {error.strerror}; give --output another",
            exit_code=2,
        ) from None
    if strange := sorted(found.keys() - _OURS):
        raise DemoError(
            f"the output folder {output} holds {strange[0]!r}, which is not the demo's; "
            "give --output another folder",
            exit_code=2,
        )
    for entry in found.values():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _stitch(
    found: Broker, folders: Folders, tiles: int, console: Console, signals: Signals
) -> tuple[Counts, float]:
    """Return the last counts, and the seconds from the processes' start to the last tile."""
    port = free_port()
    consumer_log, producer_log = folders.output / _CONSUMER_LOG, folders.output / _PRODUCER_LOG
    started = time.monotonic()
    with (
        process(
            [sys.executable, "-m", "consumer.cli", "run"],
            environment=_environment(found, _settings(found, folders, port)),
            log=consumer_log,
        ) as consuming,
        process(
            _producer_command(found, folders),
            environment=_environment(found, {}),
            log=producer_log,
        ) as producing,
    ):
        consumer = Program("consumer", consuming, consumer_log)
        with Tally(console, tiles) as tally:
            counts = until_settled(
                Program("producer", producing, producer_log),
                consumer,
                metrics_port=port,
                tiles=tiles,
                signals=signals,
                show=lambda counts: tally.show(**asdict(counts)),
            )
        seconds = time.monotonic() - started
        _drain(consumer, signals)
    return counts, seconds


def _drain(consumer: Program, signals: Signals) -> None:
    """End the consumer as Kubernetes would."""
    consumer.child.send_signal(signal.SIGTERM)
    code = wait(consumer.child, signals, timeout_s=2 * _GRACE_S)
    if code != 0:
        found = "still runs" if code is None else f"ended with exit code {code}"
        raise DemoError(
            f"after SIGTERM the consumer {found}; the end of {consumer.log}:\n{tail(consumer.log)}"
        )


def _producer_command(found: Broker, folders: Folders) -> list[str]:
    command = [sys.executable, "-m", "consumer.demo.producer", str(folders.image), *PREDICTION]
    return [
        *command,
        *("--host", found.host, "--exchange", found.prefix),
        *("--store", STORE, "--array", ARRAY),
    ]


def _settings(found: Broker, folders: Folders, port: int) -> dict[str, str]:
    return {
        "TILES_OUTPUT_ROOT": str(folders.output),
        "TILES_SCRATCH_FOLDER": str(folders.scratch),
        "TILES_HOSTS": found.host,
        "TILES_TOPOLOGY_PREFIX": found.prefix,
        "TILES_HTTP_HOST": "127.0.0.1",
        "TILES_HTTP_PORT": str(port),
        "TILES_IDLE_S": "1",
        "TILES_GRACE_S": str(_GRACE_S),
        "TILES_LOG_FORMAT": "text",
    }


def _environment(found: Broker, settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these settings in place of its own."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("TILES_")}
    return {**inherited, **found.access, **settings}


def _identical(folders: Folders, signals: Signals) -> bool:
    """Have the store judged by a process that knows nothing of the consumer."""
    log = folders.output / _CHECK_LOG
    command = [
        *(sys.executable, "-P", str(Path(__file__).with_name("check.py"))),
        *(str(folders.output / STORE), ARRAY, str(folders.image)),
        *("--save", str(folders.expected), *PREDICTION),
    ]
    with process(command, environment=os.environ, log=log) as checking:
        code = wait(checking, signals, timeout_s=_CHECK_S)
    try:
        verdict: dict[str, Any] = json.loads(tail(log).rpartition("\n")[2])
    except json.JSONDecodeError:
        raise DemoError(f"the check ended with {code}; see {log}:\n{tail(log)}") from None
    return code == 0 and verdict["identical"] is True


def _draw(folders: Folders, size: int, *, identical: bool) -> None:
    seams = [cut.start + cut.crop for cut in cuts(size, TILE, OVERLAP)]
    tiles = len(seams) ** 2
    stitched = np.asarray(zarr.open_group(folders.output / STORE, mode="r")[ARRAY])
    expected = np.load(folders.expected)
    if stitched.shape != expected.shape:
        raise DemoError(f"the store holds {stitched.shape}; it should hold {expected.shape}")
    draw(
        folders.output / _PICTURE,
        noisy=np.load(folders.image),
        stitched=stitched,
        expected=expected,
        identical=identical,
        seams=(seams, seams),
        title=f"{tiles} tiles of {TILE} x {TILE}, overlap {OVERLAP}: predicted, sent, stitched",
    )


def _result(counts: Counts, identical: bool, seconds: float) -> Result:
    return Result(
        tiles=counts.published,
        acked=counts.acknowledged,
        parked=counts.parked,
        identical=identical,
        seconds=round(seconds, 2),
        tiles_per_second=round(counts.published / seconds, 1),
    )


def _rows(result: Result, output: Path) -> dict[str, str]:
    why = f", reasons in {output / _CONSUMER_LOG}" if result.parked else ""
    return {
        "tiles published": str(result.tiles),
        "acknowledged": str(result.acked),
        "parked": f"{result.parked}{why}",
        "equal to the stitch in memory": "bit for bit" if result.identical else "NO",
        "seconds, prediction included": f"{result.seconds:.1f}",
        "tiles per second": f"{result.tiles_per_second:.1f}",
        "store": str(output / STORE),
        "picture": str(output / _PICTURE),
        "result": str(output / _RESULT),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m consumer.demo",
        description="Predict an image tile by tile, stitch it through RabbitMQ, and compare.",
    )
    parser.add_argument("--size", type=_size, default=2048, help="height and width, voxels")
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder for the results; emptied"
    )
    parser.add_argument("--broker", metavar="HOST:PORT", help="a running RabbitMQ to use")
    return parser.parse_args(arguments)


def _size(text: str) -> int:
    size = int(text)
    if size < TILE:
        raise argparse.ArgumentTypeError(f"{size} is smaller than a tile; at least {TILE}")
    return size
