"""What a scenario plays on: replicas of its own, their partitions, load, and an oracle."""

import random
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chaos import fleet
from chaos.oracle import examine
from chaos.producer import Producer, publish_tile
from consumer.topology import labels
from faults import Oracle
from harness import Channel, ConsumerProcess, wait_until
from operating import Said, topology
from scale import load
from scale.brokers import AnyBroker, active, as_broker, in_background, in_parallel
from scale.figures import balanced
from scale.watch import Watch

PARTITIONS = 16
HEARTBEAT_S = 2
RATE = 96.0
_PATIENCE_S = 180.0
_QUIET_S = 3.0
_ROUNDS = 3
_KEYS = 400
_SETTINGS: dict[str, Any] = {
    "heartbeat_s": HEARTBEAT_S,
    "prefetch_count": 20,
    "max_message_bytes": 1 << 20,
    "memory_budget_bytes": 256 << 20,
    "max_age_s": 6,
    "reconnect_min_s": 0.1,
    "retry_max_s": 1,
}
# With what the harness hastens each consumer.
_HASTENED = ("TILES_IDLE_S", "TILES_RECONNECT_MAX_S", "TILES_PROBE_INTERVAL_S")


@dataclass(frozen=True)
class Options:
    """How scenarios are played, and where what they need lies."""

    folder: Path
    quick: bool
    seed: int


@dataclass
class Stage:
    """One scenario's.

    Attributes
    ----------
    balancing : bool
        Whether the broker heeds priorities of single active consumers: RabbitMQ 4.
    defaults : bool
        Whether replicas have the product's own settings, instead of small and hastened ones.
    figures : dict
        What was measured or counted, for the table.
    problems : list of str
        What is not as it must be, with what was seen.
    """

    name: str
    broker: AnyBroker
    balancing: bool
    options: Options
    partitions: int = PARTITIONS
    defaults: bool = False
    figures: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    oracle: Oracle = field(default_factory=Oracle)
    replicas: list[ConsumerProcess] = field(default_factory=list)
    producers: list[Producer] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.folder = self.options.folder / self.name
        self.root = self.folder / "root"
        self.chance = random.Random(f"{self.options.seed} {self.name}")

    def __enter__(self) -> Self:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        for replica in self.replicas:
            kill(replica)

    @property
    def labels(self) -> list[str]:
        """The partitions as metrics name them."""
        return labels(self.partitions)

    @property
    def queues(self) -> list[str]:
        """The partitions' queues, in the same order."""
        ring = f"{self.name}.{self.partitions}" if self.partitions > 1 else self.name
        return [f"{ring}.{label}" for label in self.labels]

    def add_replicas(self, count: int, **settings: Any) -> None:
        """Make replicas; they are not started yet."""
        first = len(self.replicas)
        self.replicas += [
            ConsumerProcess(
                as_broker(self.broker),
                self.root,
                self.folder / f"r{number}.log",
                **{
                    **({} if self.defaults else _SETTINGS),
                    "hosts": self.broker.hosts,
                    "topology_prefix": self.name,
                    "partitions": self.partitions,
                    "replica": number,
                    "consumer_name": f"r{number}",
                    **settings,
                },
            )
            for number in range(first, first + count)
        ]
        for replica in self.replicas[first:] if self.defaults else ():
            for name in _HASTENED:
                del replica.environment[name]

    def prepare(self, count: int, **settings: Any) -> list[list[Any]]:
        """Make replicas, have one declare the topology, and choose stores of each partition."""
        self.add_replicas(count, **settings)
        self.scale_to(1)
        self.scale_to(0)
        with self.channel() as channel:
            placed = load.routed(channel, self.queues, load.keys(_KEYS))
        images = load.images(placed)
        assert len(images) == self.partitions, f"of {self.partitions} some get no stores: {images}"
        return images

    def topology(self, *words: str) -> Said:
        """Run `consumer topology` for the partitions in use."""
        return topology(as_broker(self.broker), self.name, *words, partitions=self.partitions)

    def operate(self, *words: str) -> None:
        """Run `consumer topology`, which has to succeed."""
        done = self.topology(*words)
        if done.code:
            self.problem(f"topology {' '.join(words)}: exit code {done.code}: {done.said}")

    def enter(self, resource: AbstractContextManager[Any]) -> Any:
        """Have something until the end of the scenario."""
        return self._stack.enter_context(resource)

    def watch(self) -> Watch:
        """Watch the replicas until the end of the scenario."""
        watch: Watch = self.enter(Watch(self.replicas))
        return watch

    def channel(self) -> Channel:
        """Return a channel to publish and to look at queues with."""
        return Channel(as_broker(self.broker), self.name)

    def producing(self, images: Sequence[Sequence[Any]], rate: float = RATE) -> Producer:
        """Publish tiles of some images for as long as the block is entered."""
        endless = load.tiles(images, random.Random(self.chance.random()))
        messages = (publish_tile(self.oracle, tile) for tile in endless)
        producer = Producer(as_broker(self.broker), self.name, messages, rate=rate)
        self.producers.append(producer)
        return producer

    def running(self) -> list[str]:
        """Return the names of the replicas that run."""
        return [fleet.name(each) for each in self.replicas if fleet.running(each)]

    def scale_to(self, count: int) -> None:
        """Start or end replicas as a StatefulSet does, until the first so many run."""
        for replica in self.replicas[:count]:
            if not fleet.running(replica):
                replica.start(ready=False)
        in_parallel([partial(self.end, each) for each in self.replicas[count:]])
        for replica in self.replicas[:count]:
            self.wait_ready(replica)

    def resize(self, count: int, what: str, limit_s: float) -> tuple[float, float]:
        """Start or end replicas, all at once, and wait for the balance of the first so many.

        Returns the seconds until that, and until those that come were subscribed: both from when
        processes were started and SIGTERM was sent, however long they take to begin or end.
        """
        began, staying = time.monotonic(), self.replicas[:count]
        for replica in (coming := [each for each in staying if not fleet.running(each)]):
            replica.start(ready=False)
        with in_background([partial(self.end, each) for each in self.replicas[count:]]):
            for replica in coming:
                self.wait_ready(replica)
            ready_s = time.monotonic() - began
            told = f"{what}, those that come subscribed after {ready_s:.1f} s"
            balanced_s = self.wait_balanced(told, limit_s, staying, began)
        return balanced_s, ready_s

    def wait_ready(self, replica: ConsumerProcess) -> None:
        """Wait until a replica is subscribed to all partitions."""
        wait_until(
            lambda: replica.status("/readyz") == 200,
            lambda: f"{fleet.name(replica)} ready:\n{replica.tail()}",
            _PATIENCE_S,
        )

    def end(self, replica: ConsumerProcess) -> None:
        """Send SIGTERM and wait; an exit code is a problem."""
        code = fleet.stopped(replica)
        if code:
            self.problem(f"{fleet.name(replica)} ended with exit code {code} on SIGTERM")

    def problem(self, text: str) -> None:
        """Take note of what is not as it must be."""
        self.problems.append(text)

    def wait_balanced(
        self,
        what: str,
        limit_s: float,
        among: Sequence[ConsumerProcess] | None = None,
        since: float | None = None,
    ) -> float:
        """Wait until each partition has one active consumer, and each replica its share.

        Without priorities in the broker: only the former. Returns the seconds since a time,
        monotonic, by default now, the asking included; more than the limit is a problem. By
        default all that run have a share.
        """
        began, seen = time.monotonic() if since is None else since, dict[str, list[str]]()

        def good() -> bool:
            nonlocal seen
            seen = active(self.broker)
            names = self.running() if among is None else [fleet.name(each) for each in among]
            return balanced(seen, self.queues, names, even=self.balancing)

        try:
            wait_until(good, "a balance", _PATIENCE_S, poll_s=0.1)
        except AssertionError:
            self.problem(f"{what}: never balanced: {self.describe(seen)}")
        taken = time.monotonic() - began
        if taken > limit_s:
            self.problem(f"{what}: balanced after {taken:.1f} s, over {limit_s:g} s")
        return taken

    def describe(self, seen: dict[str, list[str]]) -> str:
        """Return who is active where, for a person."""
        parts = [f"{queue[-2:]}: {','.join(seen.get(queue, ['-']))}" for queue in self.queues]
        return f"running {','.join(self.running())}; active {' '.join(parts)}"

    def wait_published(self, producer: Producer, more: int) -> None:
        """Wait until so many more tiles are confirmed."""
        wanted = producer.published + more
        try:
            wait_until(lambda: producer.published >= wanted, f"{more} more tiles", _PATIENCE_S)
        except AssertionError as error:
            self.problem(str(error))

    def wait_all_delivered(self, watch: Watch, since: float, what: str) -> float:
        """Wait until each partition had a delivery after a time; return the longest wait."""
        wanted = self.labels

        def done() -> bool:
            return len(watch.delivered_since(wanted, since)) == len(wanted)

        def told() -> str:
            missing = sorted(set(wanted) - set(watch.delivered_since(wanted, since)))
            return f"{what}: deliveries on partitions {missing}"

        try:
            wait_until(done, told, _PATIENCE_S, poll_s=0.1)
        except AssertionError as error:
            self.problem(str(error))
        firsts = [min((t for t in watch.seen(each) if t > since), default=0) for each in wanted]
        return max(0.0, max(firsts) - since)

    def finish(self, watch: Watch | None = None) -> None:
        """Let the replicas do the rest, end them, and compare every voxel with what was sent."""
        published = sum(producer.published for producer in self.producers)
        self.figures |= {"tiles": self.oracle.count, "published": published or self.oracle.count}
        # A count of 0 may come from a queue whose leader is silent: then there is another round.
        for number in range(_ROUNDS):
            self.wait_idle()
            if watch is not None:
                self.figures["redelivered"] = watch.redelivered
            in_parallel([partial(self.end, each) for each in self.replicas])
            found = examine(self.root, self.oracle.confirmed)
            if not found.lost or number == _ROUNDS - 1:
                break
            self.scale_to(1)
        self.figures |= {"lost": found.lost, "corrupt": found.corrupt, "foreign": found.foreign}
        if found.lost or found.corrupt or found.foreign:
            self.problem(f"lost {found.lost}, corrupt {found.corrupt}, foreign {found.foreign}:")
            self.problems += found.notes[:8]
        if not self.oracle.count:
            self.problem("nothing was published")

    def wait_idle(self) -> None:
        """Return once all queues have stayed empty, and nothing held, for some seconds."""
        since: list[float] = []

        def quiet() -> bool:
            if self._busy():
                since.clear()
                return False
            since.append(time.monotonic())
            return since[-1] - since[0] > _QUIET_S

        try:
            wait_until(quiet, self._tails, _PATIENCE_S, poll_s=0.2)
        except AssertionError as error:
            self.problem(f"not all was settled: {error}")

    def _busy(self) -> bool:
        found = [fleet.metrics(each) for each in self.replicas if fleet.running(each)]
        held = ("tiles_unacknowledged", "tiles_open_blocks")
        if any(each is None or any(each[name] for name in held) for each in found):
            return True
        with self.channel() as channel:
            return any(channel.depth(queue) for queue in self.queues)

    def _tails(self) -> str:
        running = [each for each in self.replicas if fleet.running(each)]
        return "\n".join(f"{fleet.name(each)}: …{each.tail()[-500:]}" for each in running)


def kill(replica: ConsumerProcess) -> None:
    """End a replica and its writer without notice, as when its container goes."""
    family = fleet.processes(replica)
    fleet.signal_all(family, signal.SIGKILL)
    if replica.process is not None:
        replica.process.wait(30)
