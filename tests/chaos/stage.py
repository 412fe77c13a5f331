"""What a scenario plays on: queues, an output root and consumers of its own, on a shared broker."""

import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pika.exceptions import AMQPError

from chaos import disks, product
from chaos.fleet import CONSUMER_TIMEOUT_S, REPLICAS, Fleet
from chaos.images import tiles
from chaos.producer import Bad, Producer, Publish, publish_tile
from consumer.testing import RabbitMQ
from faults import Oracle
from harness import Channel, ConsumerProcess

# Tiles a second: enough to keep consumers at work, and so few that two cores do all the rest.
RATE = 120.0
FAILPOINTS = "TILES_FAILPOINTS"
WITHOUT = ("fence", "fsync", "folder-fsync")
_UNSYNCED = {"fsync": "all", "folder-fsync": "folders"}

Entered = TypeVar("Entered")


@dataclass(frozen=True)
class Options:
    """How the scenarios of a run are played.

    Attributes
    ----------
    folder : Path
        Where all they need lies.
    without : str
        What is switched off to show that scenarios can fail, of `WITHOUT`; or "".
    """

    folder: Path
    quick: bool
    seed: int
    without: str = ""


@dataclass
class Stage:
    """One scenario's.

    Attributes
    ----------
    chance : Random
        Seeded; every choice is its.
    faults : int
        Those that happened, or tiles published, whichever the scenario counts.
    recoveries : list of float
        Seconds from faults until the work that the victims held went on; see `recovered`.
    problems, notes : list of str
        What is wrong beside the figures of the row, and what is worth a line.
    bad : dict
        By message id, each message that must be parked.
    bad_confirmed : Counter
        How often the broker has confirmed them, by prefix and message id.
    deadly : set of bytes
        Those of them that kill whoever takes them.
    known : set of str
        First parts of the paths of what lay below the root before.
    guarded : list of Path
        Folders that no message may change, good or bad.
    kept : dict
        What lay in them, as `chaos.oracle.snapshot` has it.
    """

    name: str
    broker: RabbitMQ
    options: Options
    chance: random.Random = field(init=False)
    folder: Path = field(init=False)
    root: Path = field(init=False)
    oracle: Oracle = field(default_factory=Oracle)
    fleets: list[Fleet] = field(default_factory=list)
    producers: list[Producer] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bad: dict[bytes, Bad] = field(default_factory=dict)
    bad_confirmed: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    deadly: set[bytes] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    guarded: list[Path] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    faults: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.options.seed} {self.name}")
        self.folder = self.options.folder / self.name
        self.root = self.folder / "root"

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
        for fleet in self.fleets:
            fleet.end()
            delete_topology(self.broker, fleet.prefix)
        self._stack.close()

    @property
    def fleet(self) -> Fleet:
        """The consumers, where there is one queue."""
        return self.fleets[0]

    @property
    def published(self) -> int:
        """Messages confirmed."""
        return sum(producer.published for producer in self.producers)

    def enter(self, resource: AbstractContextManager[Entered]) -> Entered:
        """Have something until the end of the scenario."""
        return self._stack.enter_context(resource)

    def add_fleet(
        self,
        *,
        count: int = REPLICAS,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Fleet:
        """Make consumers of one more queue; they are not started yet."""
        given = dict(environment or {})
        if self.options.without == "fence":
            given[FAILPOINTS] = product.FENCE_OFF
        if self.options.without in _UNSYNCED:
            given |= disks.unsynced(self.folder, _UNSYNCED[self.options.without])
        prefix = f"{self.name}{len(self.fleets)}"
        fleet = Fleet(
            self.broker,
            self.root,
            self.folder,
            prefix,
            count=count,
            environment=given,
            **settings,
        )
        self.fleets.append(fleet)
        return fleet

    def start(
        self,
        *,
        count: int = REPLICAS,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Fleet:
        """Make and start consumers of one more queue."""
        fleet = self.add_fleet(count=count, environment=environment, **settings)
        fleet.start()
        return fleet

    def arm(self, consumer: ConsumerProcess, *points: str) -> None:
        """Set the failpoints that a consumer has from its next start on."""
        off = [product.FENCE_OFF] if self.options.without == "fence" else []
        consumer.environment[FAILPOINTS] = ";".join([*off, *points])

    def counted(self, count: int) -> Iterator[int]:
        """Yield as many numbers, and count each as a fault when its turn is over."""
        for number in range(count):
            yield number
            self.faults += 1

    def load(self, *, rate: float = RATE) -> Producer:
        """Publish tiles for as long as the block is entered."""
        # In a thread of its own: the scenario's choices must not depend on how far that is.
        endless = tiles(random.Random(self.chance.random()))
        return self.publishing((publish_tile(self.oracle, tile) for tile in endless), rate=rate)

    def publishing(
        self, messages: Iterable[Publish], *, rate: float = RATE, prefix: str = ""
    ) -> Producer:
        """Publish some messages."""
        producer = Producer(self.broker, prefix or self.fleet.prefix, messages, rate=rate)
        self.producers.append(producer)
        return producer

    def send(self, messages: Iterable[Publish], *, rate: float = 1e4, prefix: str = "") -> None:
        """Publish some messages, and return when all are confirmed."""
        with self.publishing(messages, rate=rate, prefix=prefix) as producer:
            producer.wait()

    def channel(self) -> Channel:
        """Return a channel to look at queues with."""
        return Channel(self.broker, self.fleet.prefix)

    def recovered(
        self, fault: float, *, after: float | None = None, but: ConsumerProcess | None = None
    ) -> None:
        """Note the seconds from a fault until the work that its victim held goes on.

        That is the first acknowledgement by somebody else: RabbitMQ delivers first what a consumer
        has held and lost. A fault that hits everybody, or lasts for as long as the scenario wants,
        is over when anybody acknowledges.

        Parameters
        ----------
        fault : float
            When it happened, or, where it lasts, when it ended; Unix seconds.
        after : float
            Since when an acknowledgement counts, where that is later.
        but : ConsumerProcess
            A victim that still runs: what it acknowledges by itself does not count.
        """
        at = self.fleet.wait_acknowledged(fault if after is None else after, but=but)
        self.recoveries.append(at - fault)


def start_broker() -> RabbitMQ:
    """Return the broker of all scenarios, to be entered."""
    # RabbitMQ 4 takes no more than 16 MiB by itself, of which one of the bad messages is beyond.
    config = f"consumer_timeout = {1000 * CONSUMER_TIMEOUT_S}\nmax_message_size = 134217728\n"
    return RabbitMQ(extra_config=config)


def delete_topology(broker: RabbitMQ, prefix: str) -> None:
    """Delete what a fleet declared: queues that nobody reads would fill the broker."""
    with contextlib.suppress(AMQPError, OSError), Channel(broker, prefix) as channel:
        for queue in (f"{prefix}.00", f"{prefix}.parked"):
            channel.channel.queue_delete(queue)
        for exchange in (prefix, f"{prefix}.parking", f"{prefix}.events"):
            channel.channel.exchange_delete(exchange)
