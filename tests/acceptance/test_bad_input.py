"""Bad input among a thousand good tiles: parked with its reason, harmless to all others.

One consumer meets every message once; each test then looks at one thing that came of it.
"""

import contextlib
import hashlib
import os
import stat
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from pika.exceptions import AMQPConnectionError

from bad_messages import (
    ABSOLUTE,
    BAD,
    BATCH_CASES,
    BATCHES,
    DAMAGED,
    EXISTING,
    FULL,
    GOOD_RUN,
    GOOD_SHAPE,
    GOOD_SOURCE,
    MESSAGE_ID_OF_NONE,
    NESTED,
    ODD,
    ODD_STORE,
    SIDE,
    STORE,
    TILE,
    UNREADABLE,
    UNREADABLE_BY_BROKERS,
    UNROUTABLE,
    Case,
    entry,
    prepare,
    unchecked,
)
from consumer.message import Encoded, encode
from consumer.testing import RabbitMQ
from harness import Channel, ConsumerProcess, voxels, wait_until
from wire import Headers, fields_of, split_headers, undecoded_headers

DTYPES = ["float32", "uint32", "float64", "int64", "float32"] * 2
TILES_OF_AN_ARRAY = (GOOD_SHAPE[1] // SIDE) * (GOOD_SHAPE[2] // SIDE)
GOOD_COUNT = TILES_OF_AN_ARRAY * len(DTYPES)
# From the start of the run to the last that it waits for; what is missing then, each test says.
PATIENCE_S = 120.0
# Those that end with a reason, and those that may end without.
PARKED = [*BAD, *UNROUTABLE]
ENDED = [*PARKED, *FULL, *UNREADABLE]
KEPT = (
    "content_type",
    "content_encoding",
    "priority",
    "correlation_id",
    "reply_to",
    "message_id",
    "timestamp",
    "type",
    "app_id",
)
# What the parking adds, the broker counts, or an earlier parking left.
NOT_THE_PRODUCERS = (b"x-tiles-", b"x-delivery-count")

Tree = dict[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Copy:
    """A message taken from the parking queue; header values are encoded, their kind first."""

    properties: Any
    headers: Headers
    body: bytes = field(repr=False)

    def text(self, name: str) -> str:
        """Return a header that is text, or '' where there is none."""
        return self.headers.get(name.encode(), b"")[5:].decode()


@dataclass
class Run:
    """What came of every message."""

    root: Path
    parked: dict[bytes, list[Copy]] = field(default_factory=lambda: defaultdict(list))
    published: int = 0
    refused: set[str] = field(default_factory=set)
    retries: dict[str, float] = field(default_factory=dict)
    unroutable_held: dict[str, float] = field(default_factory=dict)
    alive: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    ready_before_stop: int = -1
    ready_after_stop: int = -1
    exit_code: int | None = None
    before: dict[str, Tree] = field(default_factory=dict)
    after: dict[str, Tree] = field(default_factory=dict)

    def copy(self, case: Case) -> Copy:
        """Return the one copy of a case."""
        found = self.parked.get(case.message_id, [])
        assert len(found) == 1, f"{len(found)} copies of {case.name} are parked"
        return found[0]


# -- good tiles -----------------------------------------------------------------------------------


def good_place(number: int) -> tuple[str, str]:
    """Return store key and array path of a good array."""
    return f"good/{number % 4}.zarr", f"g{number}/img"


def good_image(number: int) -> npt.NDArray[Any]:
    """Return the voxels of a good array."""
    return voxels(GOOD_SHAPE, array=number, dtype=DTYPES[number])


def good_tiles() -> Iterator[Encoded]:
    """Yield the good tiles, the arrays by turns."""
    images = [good_image(number) for number in range(len(DTYPES))]
    for y in range(0, GOOD_SHAPE[1], SIDE):
        for x in range(0, GOOD_SHAPE[2], SIDE):
            for number, image in enumerate(images):
                store, array = good_place(number)
                said = entry(
                    store=store,
                    array=array,
                    shape=list(GOOD_SHAPE),
                    dtype=DTYPES[number],
                    chunks=[1, 64, 64],
                    shards=[1, 128, 128] if number % 2 else None,
                    source=GOOD_SOURCE,
                    run=GOOD_RUN,
                    tiles=[{"stitch_coords": [y, x]}],
                )
                yield encode(said, [image[:, y : y + SIDE, x : x + SIDE]])


# -- the wire -------------------------------------------------------------------------------------


def sent_headers(case: Case) -> Headers:
    """Return the headers of a case as they were sent, without those that are not kept."""
    table = split_headers(b"".join(case.basic_properties().encode()))[1]
    return {
        name: value
        for name, value in fields_of(table).items()
        if not name.startswith(NOT_THE_PRODUCERS)
    }


# -- the disk -------------------------------------------------------------------------------------


def tree(folder: Path, *, without: Path | None = None) -> Tree:
    """Return all that can be seen of what lies below a folder, links not followed."""
    found: Tree = {}
    for parent, folders, files in os.walk(folder):
        if without is not None and without.name in folders and Path(parent) == without.parent:
            folders.remove(without.name)
        for path in (Path(parent), *(Path(parent, name) for name in (*files, *folders))):
            found[str(path.relative_to(folder))] = _seen(path)
    return found


def _seen(path: Path) -> tuple[Any, ...]:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        content = str(path.readlink())
    elif stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        content = ""
    return status.st_mode, status.st_size, status.st_mtime_ns, content


# -- the run --------------------------------------------------------------------------------------


class Stage:
    """One broker's queues, a consumer, a producer, and what they have done so far."""

    def __init__(self, broker: RabbitMQ, consumer: ConsumerProcess, prefix: str, run: Run) -> None:
        self.broker = broker
        self.consumer = consumer
        self.prefix = prefix
        self.run = run
        self._deadline = time.monotonic() + PATIENCE_S

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition until it holds or patience ends."""
        with contextlib.suppress(AssertionError):
            wait_until(condition, "", max(1.0, self._deadline - time.monotonic()))

    def publish(self, producer: Channel, case: Case) -> None:
        """Publish a case, confirmed and mandatory."""
        producer.channel.basic_publish(
            self.prefix, case.routing_key, case.body, case.basic_properties(), mandatory=True
        )
        self.run.published += 1

    def publish_or_be_refused(self, case: Case) -> None:
        """Publish a case that the broker may close the connection for."""
        try:
            with Channel(self.broker, self.prefix) as producer:
                self.publish(producer, case)
        except AMQPConnectionError:
            self.run.refused.add(case.name)

    def settled(self) -> bool:
        """Whether the consumer has settled all that was published."""
        return self.consumer.settled() >= self.run.published

    def drain(self, producer: Channel) -> None:
        """Take what is parked."""
        for properties, body in producer.drain(f"{self.prefix}.parked"):
            identity = properties.message_id
            key = identity if isinstance(identity, bytes) else str(identity).encode()
            self.run.parked[key].append(Copy(properties, properties.headers or {}, body))

    def wait_parked(self, producer: Channel, cases: Sequence[Case]) -> None:
        """Take what is parked until every case is among it, or patience ends."""

        def all_there() -> bool:
            self.drain(producer)
            return all(case.message_id in self.run.parked for case in cases)

        self.wait(all_there)


def interleaved(cases: list[Case]) -> Iterator[Encoded | Case]:
    """Yield all good tiles with the cases evenly between them, after one of each array."""
    good = list(good_tiles())
    first, rest = good[: len(DTYPES)], good[len(DTYPES) :]
    yield from first
    step = -(-len(rest) // len(cases))
    groups = [rest[i : i + step] for i in range(0, len(rest), step)]
    for group, case in zip_longest(groups, cases, fillvalue=None):
        yield from chain(group or (), (case,) if case else ())


def meet_everything(stage: Stage, producer: Channel) -> None:
    """Have the consumer meet every message but those that find no parking queue."""
    cases = [*BAD, *ODD, *FULL, *UNREADABLE, *NESTED]
    for message in interleaved(cases):
        if isinstance(message, Case):
            stage.publish(producer, message)
        else:
            producer.publish(message, message_id=MESSAGE_ID_OF_NONE)
            stage.run.published += 1
    for case in UNREADABLE_BY_BROKERS:
        stage.publish_or_be_refused(case)
    stage.wait(stage.settled)
    stage.wait_parked(producer, [*BAD, *FULL, *UNREADABLE, *NESTED])


def meet_no_parking_queue(stage: Stage, producer: Channel) -> None:
    """Have the consumer meet bad messages while the parking queue is unbound, and deleted."""
    exchange, queue = f"{stage.prefix}.parking", f"{stage.prefix}.parked"
    unbound, deleted = UNROUTABLE

    producer.channel.queue_unbind(queue, exchange, "#")
    wait_until_retried(stage, producer, unbound)
    producer.channel.queue_bind(queue, exchange, "#")
    stage.wait_parked(producer, [unbound])

    producer.channel.queue_delete(queue)
    wait_until_retried(stage, producer, deleted)
    producer.channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    producer.channel.queue_bind(queue, exchange, "#")
    stage.wait_parked(producer, [deleted])
    stage.wait(stage.settled)
    # A gauge, measured a few times a second.
    stage.wait(lambda: stage.consumer.metrics()["tiles_unacknowledged"] == 0)


def wait_until_retried(stage: Stage, producer: Channel, case: Case) -> None:
    """Publish a case and wait until parking it was tried again."""
    name = 'tiles_retries_total{operation="park"}'
    before = stage.consumer.metrics()[name]
    stage.publish(producer, case)
    stage.wait(lambda: stage.consumer.metrics()[name] >= before + 2)
    metrics = stage.consumer.metrics()
    stage.run.retries[case.name] = metrics[name] - before
    stage.run.unroutable_held[case.name] = metrics["tiles_unacknowledged"]


@pytest.fixture(scope="module")
def run(broker: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One consumer's meeting with all messages, and what came of each."""
    world = tmp_path_factory.mktemp("world")
    outside, root = world / "outside", world / "root"
    outside.mkdir()
    root.mkdir()
    (outside / "precious.txt").write_text("not to be touched")
    prepare(root, outside)
    found = Run(root)
    found.before = trees(world, root)
    prefix = f"t{uuid.uuid4().hex[:12]}"
    log = tmp_path_factory.mktemp("logs") / "consumer.log"
    consumer = ConsumerProcess(broker, root, log, topology_prefix=prefix)
    stage = Stage(broker, consumer, prefix, found)
    with undecoded_headers(), consumer, Channel(broker, prefix) as producer:
        pid = consumer.pid
        meet_everything(stage, producer)
        meet_no_parking_queue(stage, producer)
        found.metrics = consumer.metrics()
        found.alive = consumer.status("/livez") == 200 and consumer.pid == pid
        found.ready_before_stop = producer.depth(f"{prefix}.00")
        found.exit_code = consumer.stop()
        found.ready_after_stop = producer.depth(f"{prefix}.00")
        stage.drain(producer)
    found.after = trees(world, root)
    return found


def trees(world: Path, root: Path) -> dict[str, Tree]:
    """Return what lies around the root, and in it."""
    return {"outside": tree(world, without=root), "root": tree(root)}


def named(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Return a parametrization by case."""
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


# -- each bad message -----------------------------------------------------------------------------


@named(PARKED)
def test_a_bad_message_is_parked_with_its_reason(run: Run, case: Case) -> None:
    assert run.copy(case).text("x-tiles-reason") == case.reason


@named(PARKED)
def test_the_detail_names_the_offending_value(run: Run, case: Case) -> None:
    detail = run.copy(case).text("x-tiles-detail")
    assert [part for part in case.detail if part not in detail] == [], detail


@named(FULL)
def test_what_cannot_be_copied_is_dead_lettered(run: Run, case: Case) -> None:
    found = run.copy(case)
    assert found.text("x-first-death-reason") == "rejected"


@named(ENDED)
def test_a_parked_message_keeps_its_body(run: Run, case: Case) -> None:
    assert run.copy(case).body == case.body


@named(ENDED)
def test_a_parked_message_keeps_its_properties(run: Run, case: Case) -> None:
    sent, found = case.basic_properties(), run.copy(case).properties
    assert {k: getattr(found, k) for k in KEPT} == {k: getattr(sent, k) for k in KEPT}


@named(ENDED)
def test_a_parked_message_keeps_its_headers(run: Run, case: Case) -> None:
    sent, found = sent_headers(case), run.copy(case).headers
    assert {name: found.get(name) for name in sent} == sent


@named(ENDED)
def test_a_parked_message_is_durable_and_never_expires(run: Run, case: Case) -> None:
    found = run.copy(case).properties
    assert (found.delivery_mode, found.expiration) == (2, None)


def test_headers_nested_to_any_depth_end_parked(run: Run) -> None:
    assert [case.name for case in NESTED if len(run.parked[case.message_id]) != 1] == []


@named(UNREADABLE_BY_BROKERS)
def test_headers_that_brokers_cannot_read_are_refused_or_end_parked(run: Run, case: Case) -> None:
    assert case.name in run.refused or run.copy(case).body == case.body


@named(UNROUTABLE)
def test_a_message_that_finds_no_parking_queue_is_held_and_tried_again(
    run: Run, case: Case
) -> None:
    assert run.retries[case.name] >= 2
    assert run.unroutable_held[case.name] >= 1


@named(BATCH_CASES)
def test_a_batch_with_one_bad_tile_writes_none_of_its_tiles(run: Run, case: Case) -> None:
    stored = zarr.open_array(run.root / BATCHES, path=case.name, mode="r")
    assert not np.any(stored[:])


# -- all the others -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(DTYPES)))
def test_the_good_tiles_are_written_bit_for_bit(run: Run, number: int) -> None:
    store, path = good_place(number)
    stored = zarr.open_array(run.root / store, path=path, mode="r")
    np.testing.assert_array_equal(stored[:], good_image(number), strict=True)


@named(ODD)
def test_a_message_that_is_only_odd_is_written(run: Run, case: Case) -> None:
    stored = zarr.open_array(run.root / ODD_STORE, path=case.name, mode="r")
    wanted = np.zeros(stored.shape, "float32")
    wanted[0, :SIDE, :SIDE] = TILE
    np.testing.assert_array_equal(stored[:], wanted, strict=True)


def test_every_good_message_is_acknowledged(run: Run) -> None:
    acknowledged = run.metrics["tiles_deliveries_acknowledged_total"]
    assert acknowledged == GOOD_COUNT + len(ODD)
    assert GOOD_COUNT == 1000


def test_as_many_messages_are_parked_as_are_bad(run: Run) -> None:
    ends = [*ENDED, *NESTED, *(c for c in UNREADABLE_BY_BROKERS if c.name not in run.refused)]
    found = {key: len(copies) for key, copies in run.parked.items()}
    assert found == dict.fromkeys((case.message_id for case in ends), 1)


@pytest.mark.parametrize("reason", sorted({case.reason for case in PARKED}))
def test_the_metrics_count_the_reasons(run: Run, reason: str) -> None:
    copies = list(chain.from_iterable(run.parked.values()))
    wanted = sum(copy.text("x-tiles-reason") == reason for copy in copies)
    if reason == "unknown_version":
        # What all that are dead-lettered have been refused for.
        wanted += sum(not copy.text("x-tiles-reason") for copy in copies)
    assert run.metrics[f'tiles_deliveries_parked_total{{reason="{reason}"}}'] == wanted


# -- the consumer, the queue and the disk ---------------------------------------------------------


def test_no_message_stops_the_consumer(run: Run) -> None:
    assert run.alive


@pytest.mark.parametrize("connection", ["consume", "publish"])
def test_no_message_costs_a_connection(run: Run, connection: str) -> None:
    assert run.metrics[f'tiles_reconnects_total{{connection="{connection}"}}'] == 0


def test_nothing_waits_in_the_queue(run: Run) -> None:
    assert run.ready_before_stop == 0
    assert run.metrics["tiles_unacknowledged"] == 0


def test_the_consumer_stops_cleanly_and_gives_nothing_back(run: Run) -> None:
    assert run.exit_code == 0
    assert run.ready_after_stop == 0


def test_nothing_outside_the_output_root_is_touched(run: Run) -> None:
    assert run.after["outside"] == run.before["outside"]
    assert not Path(ABSOLUTE).parent.exists()


def below(found: Tree, *folders: str) -> Tree:
    """Return the part of a tree at or below some folders."""
    return {
        path: seen
        for path, seen in found.items()
        if any(path == folder or path.startswith(f"{folder}/") for folder in folders)
    }


def test_nothing_that_stood_in_the_root_is_changed(run: Run) -> None:
    kept = (EXISTING, BATCHES, DAMAGED, "file", "file.zarr", "link", "linked.zarr", "dangling")
    assert below(run.after["root"], *kept) == below(run.before["root"], *kept)


def test_a_parked_message_makes_no_store(run: Run) -> None:
    stores = {path for path in run.after["root"] if path.endswith(".zarr")}
    new = {path for path in stores - set(run.before["root"]) if not path.startswith(".tiles")}
    assert new == {good_place(number)[0] for number in range(len(DTYPES))} | {ODD_STORE}


def test_nothing_of_the_consumers_own_is_left_for_a_store_that_was_refused(run: Run) -> None:
    state = {path for path in run.after["root"] if path.startswith(".tiles/")}
    written = tuple(f".tiles/{store}" for store in ("good", ODD_STORE))
    left = [path for path in sorted(state) if not path.startswith(written)]
    # Of arrays that others made, what was parked of them is known; nothing killed the consumer.
    stood = tuple(f".tiles/{store}" for store in (EXISTING, BATCHES, DAMAGED))
    assert [path for path in left if not path.startswith(stood)] in ([], [".tiles/lone"])
    assert [path for path in left if "/epochs" in path or "/fenced" in path] == []


# -- a path that the system finds too long --------------------------------------------------------


def test_a_path_that_is_too_long_for_the_system_is_parked(broker: RabbitMQ, tmp_path: Path) -> None:
    prefix = f"t{uuid.uuid4().hex[:12]}"
    # PATH_MAX is 4,096 bytes: the root has 3,200 to 3,400, the array path another 1,004.
    deep = tmp_path.joinpath(*["d" * 200] * ((3400 - len(str(tmp_path))) // 201))
    array = "/".join(["a" * 200] * 5)
    consumer = ConsumerProcess(broker, deep, tmp_path / "log", topology_prefix=prefix)
    with undecoded_headers(), consumer, Channel(broker, prefix) as producer:
        case = Case("over-long", unchecked(entry(array=array)), routing_key=STORE)
        stage = Stage(broker, consumer, prefix, Run(deep))
        stage.publish(producer, case)
        stage.wait_parked(producer, [case])
        found = stage.run.copy(case)
        assert consumer.stop() == 0
    assert found.text("x-tiles-reason") == "unsafe_path"
    # A detail is bounded: one whole segment of the array path is enough to find it by.
    assert "/" + "a" * 200 in found.text("x-tiles-detail")
