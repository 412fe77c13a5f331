"""Nothing confirmed is lost, whatever happens to the consumer, the broker or the disk.

Every voxel tells its array and position; the oracle knows only confirmed publishes and compares
every voxel, read with plain zarr.
"""

import contextlib
import math
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from chaos.disks import PowerlessDisk
from chaos.producer import Producer, publish_tile
from chaos.product import NotRun
from conftest import MakeConsumer
from consumer.message import Envelope, decode
from consumer.testing import RabbitMQ
from faults import (
    Image,
    Oracle,
    SlowDisk,
    log_lines,
    queued_messages,
    remount,
    tmpfs,
    wait_done,
    wait_registered,
)
from harness import Channel, ConsumerProcess, ended, wait_until

SHARDED = (("chunks", [1, 128, 128]), ("shards", [1, 512, 512]))
PLAIN = (("chunks", [1, 128, 128]),)

Tiles = list[tuple[Image, tuple[int, int]]]


def images() -> list[Image]:
    """Two stores; whole blocks, blocks shared by tiles of odd sizes, and edge blocks."""
    return [
        Image(0, "a.zarr", "g/sharded", (1024, 1024), 128, SHARDED),
        Image(1, "a.zarr", "g/plain", (1000, 900), 100, PLAIN),
        Image(2, "p/b.zarr", "odd", (1000, 900), 90, SHARDED),
    ]


def shuffled(some: list[Image], seed: int) -> Tiles:
    """Every tile of every image, in a random order."""
    tiles = [(image, place) for image in some for place in image.places()]
    random.Random(seed).shuffle(tiles)
    return tiles


def assert_nothing_lost(
    oracle: Oracle, channel: Channel, consumer: ConsumerProcess, root: Path
) -> None:
    """Wait until all is settled, end the consumer, and compare every voxel."""
    wait_done(consumer, channel)
    assert consumer.stop() == 0
    assert oracle.wrong(root) == 0
    assert channel.depth(f"{channel.prefix}.00") == 0
    assert channel.depth(f"{channel.prefix}.parked") == 0


@contextlib.contextmanager
def publishing(
    broker: RabbitMQ, prefix: str, tiles: Tiles, oracle: Oracle
) -> Iterator[Callable[[], None]]:
    """Publish in a thread of its own; call what is given to wait until all is confirmed."""
    messages = (publish_tile(oracle, tile) for tile in tiles)
    with Producer(broker, prefix, messages, rate=math.inf) as producer:
        yield producer.wait


# -- the consumer's own end ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_consumers_killed_at_random_lose_nothing(
    make_consumer: MakeConsumer,
    broker: RabbitMQ,
    prefix: str,
    producer: Channel,
    tmp_path: Path,
    seed: int,
) -> None:
    chance, oracle = random.Random(seed), Oracle()
    consumer = make_consumer().start()
    with publishing(broker, prefix, shuffled(images() * 4, seed), oracle) as sent:
        for _ in range(4):
            enough = chance.randrange(1, 60)
            wait_until(lambda n=enough: consumer.settled() >= n, "some tiles settled")  # type: ignore[misc]
            consumer.kill()
            consumer.start()
        sent()
    assert_nothing_lost(oracle, producer, consumer, tmp_path / "root")


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM] * 2])
def test_a_consumer_told_to_stop_under_load_ends_well_and_loses_nothing(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    disk, oracle = SlowDisk(tmp_path), Oracle()
    disk.take(0.1)
    consumer = make_consumer(environment=disk.environment, prefetch_count=100).start()
    for image, place in shuffled(images(), 3):
        producer.publish(image.message(place))
        oracle.note(image, place)
    consumer.wait_settled(1)
    for number in signals:
        consumer.signal(number)
    assert consumer.process is not None
    assert consumer.process.wait(90) == 0
    left = oracle.count - acknowledged_tiles_in_store(producer, oracle, tmp_path / "root")
    assert left > 0
    assert oracle.count > 0


def acknowledged_tiles_in_store(channel: Channel, oracle: Oracle, root: Path) -> int:
    """Take out of the oracle what is still queued; the rest must be stored; return its count."""
    queued = queued_messages(channel)
    by_name = {(image.store, image.path): image for image in oracle.confirmed}
    for properties, body in queued:
        store = next(i.store for i in by_name.values() if i.store.encode() in body)
        envelope = Envelope(store, properties.type, properties.content_type)
        entry = decode(envelope, body).entry
        (y, x) = entry.tiles[0].stitch_coords
        oracle.confirmed[by_name[entry.store, entry.array]].discard((y, x))
    for image, places in oracle.confirmed.items():
        stored = zarr.open_array(root / image.store, path=image.path, mode="r")
        for place in places:
            region = (slice(None), *image.box(place))
            np.testing.assert_array_equal(np.asarray(stored[region]), image.truth[region])
    return oracle.count


def test_open_blocks_are_flushed_before_the_process_ends(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    disk, oracle = SlowDisk(tmp_path), Oracle()
    image = Image(0, "a.zarr", "x", (1024, 1024), 128, SHARDED)
    consumer = make_consumer(environment=disk.environment, idle_s=600, workers=1).start()
    for place in [(0, 0), (0, 512), (512, 0), (512, 512)]:
        producer.publish(image.message(place))
        oracle.note(image, place)
    wait_until(lambda: consumer.metrics()["tiles_open_blocks"] == 4, "four open blocks")
    disk.take(0.25)
    consumer.signal(signal.SIGTERM)
    flushed = 'tiles_blocks_written_total{reason="drain"}'
    wait_until(lambda: consumer.metrics()[flushed] > 0, "a block flushed by the drain")
    assert consumer.process is not None
    assert consumer.process.wait(90) == 0
    assert oracle.wrong(tmp_path / "root") == 0
    assert producer.depth(f"{producer.prefix}.00") == 0


@pytest.mark.parametrize("known", [1, 0], ids=["writing", "making"])
def test_a_hanging_disk_does_not_keep_the_process_from_ending(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path, known: int
) -> None:
    disk, oracle = SlowDisk(tmp_path), Oracle()
    image = Image(0, "a.zarr", "x", (256, 256), 128, PLAIN)
    consumer = make_consumer(environment=disk.environment, grace_s=2).start()
    publish_image(producer, image, oracle, stop=known)
    consumer.wait_settled(known)
    disk.take(float("inf"))
    publish_image(producer, image, oracle, known)
    held = 4 - known
    wait_until(lambda: consumer.metrics()["tiles_unacknowledged"] == held, "all delivered")
    wait_until(lambda: disk.count("begun") > disk.count("ended"), "an fsync under way")
    assert consumer.stop(60) == 1
    wait_until(lambda: producer.depth(f"{producer.prefix}.00") == held, "all given back")
    disk.take(0)
    consumer.start()
    assert_nothing_lost(oracle, producer, consumer, tmp_path / "root")


def publish_image(
    channel: Channel, image: Image, oracle: Oracle, start: int = 0, stop: int | None = None
) -> None:
    """Publish an image's tiles, from one of them on to another."""
    for place in image.places()[start:stop]:
        channel.publish(image.message(place))
        oracle.note(image, place)


# -- the broker's -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_broker(broker: RabbitMQ) -> Iterator[RabbitMQ]:
    """A broker that tests may stop."""
    with RabbitMQ() as own:
        yield own


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_broker_that_is_away_for_a_while_costs_nothing(
    own_broker: RabbitMQ, prefix: str, tmp_path: Path, end: str
) -> None:
    oracle, tiles = Oracle(), shuffled(images(), 4)
    root, log = tmp_path / "root", tmp_path / "log"
    with (
        ConsumerProcess(own_broker, root, log, topology_prefix=prefix) as consumer,
        publishing(own_broker, prefix, tiles, oracle) as sent,
    ):
        consumer.wait_settled(40)
        wait_registered(own_broker, f"{prefix}.parked")
        getattr(own_broker, end)()
        gone = time.monotonic()
        wait_until(
            lambda: time.monotonic() - gone > 10 and consumer.status("/readyz") == 503,
            "ten seconds without a broker",
        )
        own_broker.start()
        sent()
        consumer.wait_ready()
        with Channel(own_broker, prefix) as channel:
            assert_nothing_lost(oracle, channel, consumer, root)


# -- the store's --------------------------------------------------------------------------------


def test_a_store_removed_in_mid_run_is_made_anew(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    image = Image(0, "a.zarr", "g/x", (512, 512), 128, PLAIN)
    with make_consumer() as consumer:
        for place in image.places()[:8]:
            producer.publish(image.message(place))
        consumer.wait_settled(8)
        shutil.rmtree(tmp_path / "root/a.zarr")
        oracle = Oracle()
        publish_image(producer, image, oracle, 8)
        assert_nothing_lost(oracle, producer, consumer, tmp_path / "root")


def test_a_store_removed_while_its_block_is_open_is_made_anew(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    image, oracle = Image(0, "a.zarr", "g/x", (512, 1024), 128, SHARDED), Oracle()
    with make_consumer(idle_s=600) as consumer:
        first_shard = [(y, x) for y, x in image.places() if x < 512]
        for place in first_shard:
            producer.publish(image.message(place))
        consumer.wait_settled(len(first_shard))
        last = image.places()[-1]
        producer.publish(image.message(last))
        oracle.note(image, last)
        wait_until(lambda: consumer.metrics()["tiles_open_blocks"] == 1, "an open block")
        shutil.rmtree(tmp_path / "root/a.zarr")
        for place in image.places()[:-1]:
            producer.publish(image.message(place))
            oracle.note(image, place)
        assert_nothing_lost(oracle, producer, consumer, tmp_path / "root")


def test_a_store_of_an_earlier_run_that_is_removed_is_made_anew(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    image = Image(0, "a.zarr", "g/x", (512, 512), 128, SHARDED)
    with make_consumer() as consumer:
        producer.publish(image.message((0, 0)))
        consumer.wait_settled(1)
        assert consumer.stop() == 0
        consumer.environment["TILES_IDLE_S"] = "600"
        consumer.start()
        oracle = Oracle()
        producer.publish(image.message((0, 128)))
        oracle.note(image, (0, 128))
        wait_until(lambda: consumer.metrics()["tiles_open_blocks"] == 1, "an open block")
        shutil.rmtree(tmp_path / "root/a.zarr")
        for place in image.places():
            if place != (0, 128):
                producer.publish(image.message(place))
                oracle.note(image, place)
        assert_nothing_lost(oracle, producer, consumer, tmp_path / "root")


def test_tiles_over_a_damaged_shard_are_parked_and_others_go_on(
    make_consumer: MakeConsumer, producer: Channel, tmp_path: Path
) -> None:
    damaged = Image(0, "a.zarr", "x", (512, 1024), 128, SHARDED)
    with make_consumer() as consumer:
        producer.publish(damaged.message((0, 0)))
        consumer.wait_settled(1)
        shard = tmp_path / "root/a.zarr/x/c/0/0/0"
        shard.write_bytes(bytes(255 - byte for byte in shard.read_bytes()))
        assert consumer.stop() == 0
        consumer.start()
        oracle = Oracle()
        for place in [(0, 128), (128, 0)]:
            producer.publish(damaged.message(place))
        for place in [place for place in damaged.places() if place[1] >= 512]:
            producer.publish(damaged.message(place))
            oracle.note(damaged, place)
        consumer.wait_settled(18)
        wait_done(consumer, producer)
        assert consumer.metrics()['tiles_deliveries_parked_total{reason="damaged_block"}'] == 2
        assert consumer.stop() == 0
    reasons = [p.headers["x-tiles-reason"] for p, _ in producer.drain(f"{producer.prefix}.parked")]
    assert reasons == ["damaged_block"] * 2
    right = zarr.open_array(tmp_path / "root/a.zarr", path="x", mode="r")[:, :, 512:]
    np.testing.assert_array_equal(np.asarray(right), damaged.truth[:, :, 512:])


# -- the disk's ---------------------------------------------------------------------------------


@pytest.fixture
def small_root(tmp_path: Path) -> Iterator[Path]:
    """An output root on a file system of 8 MiB."""
    try:
        with tmpfs(tmp_path / "root", "8m") as root:
            yield root
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_full_disk_holds_everything_back_until_there_is_room(
    make_consumer: MakeConsumer, producer: Channel, small_root: Path
) -> None:
    image, oracle = Image(0, "a.zarr", "x", (1024, 1024), 128, PLAIN), Oracle()
    ballast = small_root / "ballast"
    with make_consumer(retry_max_s=1) as consumer:
        producer.publish(image.message((0, 0)))
        consumer.wait_settled(1)
        oracle.note(image, (0, 0))
        fill_up(ballast)
        publish_image(producer, image, oracle, 1)
        wait_until(lambda: consumer.status("/readyz") == 503, "not ready on a full disk")
        wait_until(lambda: consumer.metrics()["tiles_unacknowledged"] == 63, "all held")
        wait_until(lambda: consumer.metrics()["tiles_root_writable"] == 0, "the metric")
        assert consumer.settled() == 1
        ballast.unlink()
        consumer.wait_ready()
        assert_nothing_lost(oracle, producer, consumer, small_root)


def fill_up(ballast: Path) -> None:
    """Fill the file system to the last byte."""
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


@contextlib.contextmanager
def full_disk(root: Path) -> Iterator[Callable[[], object]]:
    """Have a root without room; call what is given to make some."""
    with tmpfs(root, "8m"):
        fill_up(root / "ballast")
        yield (root / "ballast").unlink


@contextlib.contextmanager
def read_only_disk(root: Path) -> Iterator[Callable[[], object]]:
    """Have a root that is read-only; call what is given to have it written."""
    with tmpfs(root, "8m"):
        assert remount(root, "ro")
        yield lambda: remount(root, "rw")


@contextlib.contextmanager
def failing_disk(root: Path) -> Iterator[Callable[[], object]]:
    """Have a root that gives EIO; call what is given to mend it."""
    with PowerlessDisk(root.parent, root) as disk:
        disk.cut()

        def mend() -> None:
            disk.unmount()
            disk.mount()

        yield mend


@pytest.mark.parametrize(
    ("disk", "said", "remedy"),
    [
        pytest.param(full_disk, "No space left on device", "free space", id="full"),
        pytest.param(read_only_disk, "Read-only file system", "mount it for", id="read-only"),
        pytest.param(failing_disk, "Input/output error", "see the kernel's log", id="EIO"),
    ],
)
def test_a_consumer_that_is_started_on_a_disk_that_fails_waits_until_it_works(
    make_consumer: MakeConsumer,
    producer: Channel,
    tmp_path: Path,
    disk: Callable[[Path], contextlib.AbstractContextManager[Callable[[], object]]],
    said: str,
    remedy: str,
) -> None:
    image, oracle = Image(0, "a.zarr", "x", (512, 512), 128, PLAIN), Oracle()
    with contextlib.ExitStack() as stack:
        try:
            mend = stack.enter_context(disk(tmp_path / "root"))
        except (PermissionError, NotRun) as error:
            pytest.skip(str(error))
        consumer = make_consumer()
        stack.enter_context(ended(consumer))
        consumer.start(ready=False)
        wait_until(lambda: "cannot be written" in consumer.log.read_text(), consumer.tail)
        told = time.monotonic()
        wait_until(lambda: consumer.metrics()["tiles_root_writable"] == 0, "the metric")
        assert (consumer.status("/livez"), consumer.status("/readyz")) == (200, 503)
        # It is looked at twice a second; what is known is not said again.
        wait_until(lambda: time.monotonic() - told > 2, "other looks")
        (line,) = log_lines(consumer)
        assert said in line
        assert remedy in line
        mend()
        consumer.wait_ready()
        publish_image(producer, image, oracle)
        assert_nothing_lost(oracle, producer, consumer, tmp_path / "root")


def test_a_disk_too_small_for_a_block_holds_it_back_until_there_is_room(
    make_consumer: MakeConsumer, producer: Channel, small_root: Path
) -> None:
    codecs = (("codecs", [{"name": "bytes"}]), *SHARDED)
    image, oracle = Image(0, "a.zarr", "x", (2048, 2048), 256, codecs), Oracle()
    with make_consumer(retry_max_s=1) as consumer:
        publish_image(producer, image, oracle)
        wait_until(
            lambda: consumer.metrics()['tiles_retries_total{operation="write"}'] > 2, "retries"
        )
        assert "parked" not in consumer.log.read_text()
        assert consumer.settled() < oracle.count
        assert remount(small_root, "size=64m")
        assert_nothing_lost(oracle, producer, consumer, small_root)


def test_a_root_that_turns_read_only_holds_everything_back_until_it_is_writable(
    make_consumer: MakeConsumer, producer: Channel, small_root: Path
) -> None:
    image, oracle = Image(0, "a.zarr", "x", (512, 512), 128, PLAIN), Oracle()
    with make_consumer(retry_max_s=1) as consumer:
        producer.publish(image.message((0, 0)))
        consumer.wait_settled(1)
        oracle.note(image, (0, 0))
        wait_until(lambda: remount(small_root, "ro"), "no file open for writing")
        publish_image(producer, image, oracle, 1)
        wait_until(lambda: consumer.status("/readyz") == 503, "not ready on a read-only root")
        wait_until(lambda: consumer.metrics()["tiles_unacknowledged"] == 15, "all held")
        assert consumer.settled() == 1
        assert remount(small_root, "rw")
        consumer.wait_ready()
        assert_nothing_lost(oracle, producer, consumer, small_root)
