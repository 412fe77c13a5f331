"""Two consumers that both believe to own a store: the earlier one's late write never appears."""

import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr

from conftest import MakeConsumer
from consumer.blocks import ArrayKey
from consumer.ledger_files import read
from faults import SlowDisk, log_lines
from harness import Channel, ConsumerProcess, voxels, wait_until

KEY = ArrayKey("p/late.zarr", "x")
EDGE = 64
TRUTH = voxels((EDGE, 2 * EDGE), dtype="uint16")
FIELDS = {
    "store": KEY.store,
    "array": KEY.path,
    "axes": "YX",
    "shape": [EDGE, 2 * EDGE],
    "dtype": "uint16",
    "chunks": [EDGE, 2 * EDGE],
    "source": "file:///a.zarr/x",
}


def send(producer: Channel, column: int) -> None:
    """Publish one half of the array, which is a single chunk."""
    half = TRUTH[:, column * EDGE : (column + 1) * EDGE]
    producer.send({**FIELDS, "tiles": [{"stitch_coords": [0, column * EDGE]}]}, [half[np.newaxis]])


@pytest.mark.parametrize("hangs", ["creating", "writing"])
def test_what_hung_while_another_took_the_store_does_not_appear(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, hangs: str
) -> None:
    disk = SlowDisk(tmp_path)
    with make_consumer(environment=disk.environment, heartbeat_s=1) as early:
        if hangs == "writing":
            send(producer, 0)
            early.wait_settled(1)
        settled = int(early.settled())
        begun = disk.count("begun", within="epochs")
        disk.take(float("inf"))
        send(producer, 0)
        wait_until(lambda: disk.count("begun", within="epochs") > begun, "a write that hangs")
        signal_all(early, signal.SIGSTOP)
        with make_consumer() as late:
            send(producer, 1)
            late.wait_settled(2)
            assert np.array_equal(stored(tmp_path), TRUTH)
            disk.take(0)
            signal_all(early, signal.SIGCONT)
            wait_until(lambda: "connection lost" in early.log.read_text(), "its end noticed")
            early.wait_ready()
            assert np.array_equal(stored(tmp_path), TRUTH)
            assert late.stop() == 0
        # It takes the store again where it has to.
        send(producer, 0)
        early.wait_settled(settled + 1)
        assert early.stop() == 0
    assert np.array_equal(stored(tmp_path), TRUTH)
    ledger, damages = read(tmp_path / "root", KEY)
    assert damages == []
    assert ledger is not None
    assert ledger.complete
    assert ledger.header.source == FIELDS["source"]
    assert not list((tmp_path / "root/.tiles" / KEY.store).glob("epochs/*"))
    assert not any("Traceback" in line for line in log_lines(early))


def signal_all(consumer: ConsumerProcess, number: int) -> None:
    """Signal the consumer's process and its writer."""
    for process in (psutil.Process(consumer.pid), *psutil.Process(consumer.pid).children()):
        process.send_signal(number)


def stored(folder: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """What is stored."""
    return np.asarray(zarr.open_array(folder / "root" / KEY.store, path=KEY.path, mode="r")[:])


def test_what_an_array_is_bound_to_outlives_the_consumer(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    with make_consumer() as first:
        send(producer, 0)
        first.wait_settled(1)
        assert first.stop() == 0
    with make_consumer() as second:
        other = {**FIELDS, "source": "file:///b.zarr/x"}
        tile = TRUTH[:, EDGE:][np.newaxis]
        producer.send({**other, "tiles": [{"stitch_coords": [0, EDGE]}]}, [tile])
        second.wait_settled(1)
        assert second.metrics()['tiles_deliveries_parked_total{reason="source_conflict"}'] == 1
        assert second.stop() == 0
