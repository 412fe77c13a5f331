"""Brokers that can be asked who consumes, and three of them as a cluster."""

import itertools
import json
import secrets
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, cast

import pika

from consumer.testing import RabbitMQ, server_command
from harness import parameters

_NODES = 3
_ASK_S = 60.0


class Node(RabbitMQ):
    """A private broker that rabbitmqctl can be asked about; it may be one of a cluster."""

    @property
    def name(self) -> str:
        """Its Erlang node."""
        return self._environment()["RABBITMQ_NODENAME"]

    @property
    def hosts(self) -> str:
        """Return all nodes as the consumer's setting takes them."""
        return self.host

    @property
    def up(self) -> bool:
        """Whether it was started, and not ended since."""
        return self._server is not None

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl and return what it prints; raises CalledProcessError, TimeoutExpired."""
        command = Path(server_command()).with_name("rabbitmqctl")
        done = subprocess.run(
            [command, "-q", "-n", self.name, *arguments],
            env=self._environment(),
            check=True,
            capture_output=True,
            text=True,
            timeout=_ASK_S,
        )
        return done.stdout

    def join(self, others: Sequence["Node"], cookie: str) -> None:
        """Have it join the first of some nodes at its first start; none: be the first."""
        file = self._folder / ".erlang.cookie"
        file.write_text(cookie)
        file.chmod(0o400)
        if not others:
            return
        self._epmd_port = others[0]._epmd_port
        lines = ["cluster_formation.peer_discovery_backend = classic_config"]
        for number, node in enumerate((*others, self), 1):
            lines.append(f"cluster_formation.classic_config.nodes.{number} = {node.name}")
        self._extra_config += "\n".join(lines) + "\n"


class Cluster:
    """Three nodes on the loopback interface."""

    def __init__(self) -> None:
        self.nodes = [Node() for _ in range(_NODES)]
        self._turn = itertools.cycle(self.nodes)
        self._stack = ExitStack()
        cookie = secrets.token_hex(10)
        for number, node in enumerate(self.nodes):
            node.join(self.nodes[:number], cookie)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.callback(node.close)
            for node in self.nodes:
                node.start()
            self.nodes[0].control("await_online_nodes", str(_NODES))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def host(self) -> str:
        """Return the next node that is up, for a producer to connect to."""
        for node in itertools.islice(self._turn, _NODES):
            if node.up:
                return node.host
        return self.nodes[0].host

    @property
    def hosts(self) -> str:
        """Return all nodes as the consumer's setting takes them."""
        return ",".join(node.host for node in self.nodes)

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl on the first node that is up."""
        return next(node for node in self.nodes if node.up).control(*arguments)

    def leader(self, queues: Sequence[str]) -> Node:
        """Return the node that leads most of some queues, of those that are up."""
        rows = json.loads(self.control("list_queues", "name", "leader", "--formatter", "json"))
        names = [row["leader"] for row in rows if row["name"] in queues]
        return max(
            (node for node in self.nodes if node.up), key=lambda node: names.count(node.name)
        )


AnyBroker: TypeAlias = Node | Cluster


def as_broker(broker: AnyBroker) -> RabbitMQ:
    """Return what the harness takes for a broker: it asks for the host only."""
    return cast(RabbitMQ, broker)


def version(broker: RabbitMQ | Cluster) -> str:
    """Return the version of the broker that really runs, from its own greeting."""
    connection = pika.BlockingConnection(parameters(cast(RabbitMQ, broker)))
    try:
        found: Any = connection._impl.server_properties["version"]
    finally:
        connection.close()
    return found.decode() if isinstance(found, bytes) else str(found)


def active(broker: AnyBroker) -> dict[str, list[str]]:
    """Return the replicas whose consumers are active, by queue: from the name in their tags."""
    return actives(consumers(broker))


def actives(rows: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Return the names of active consumers by queue, of what rabbitmqctl lists."""
    return _names(row for row in rows if row["active"] == "true")


def subscribed_elsewhere(rows: Sequence[dict[str, str]], node: str) -> dict[str, list[str]]:
    """Return the replicas that consume from each queue by way of another node than this one."""
    return _names(row for row in rows if node_of(row) != node)


def busiest(rows: Sequence[dict[str, str]], nodes: Sequence[Node]) -> Node:
    """Return the node that has most active consumers; it has any."""
    names = [node_of(row) for row in rows if row["active"] == "true"]
    node = max(nodes, key=lambda each: names.count(each.name))
    assert node.name in names, f"no active consumer is at any of {[each.name for each in nodes]}"
    return node


def node_of(row: dict[str, str]) -> str:
    """Return the node that a consumer is connected to, from its channel's process."""
    name, *_ = row["channel_pid"].strip("<>").rsplit(".", 3)
    return name


def _names(rows: Iterable[dict[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row["queue_name"]].append(row["consumer_tag"].rsplit("-", 1)[0])
    return dict(found)


def consumers(broker: AnyBroker) -> list[dict[str, str]]:
    """Return all consumers: queue, tag, whether active, and the Erlang process of the channel."""
    columns = ("queue_name", "consumer_tag", "active", "channel_pid")
    # As JSON, processes come without the name of their node.
    listed = broker.control("list_consumers", *columns).splitlines()
    # The columns are in an order of the broker's own; without consumers there is no header.
    names, *rows = [line.split("\t") for line in listed] or [[]]
    return [dict(zip(names, row, strict=True)) for row in rows]


def in_parallel(actions: Sequence[Callable[[], object]]) -> None:
    """Do several things at once, and raise what any of them raises."""
    with in_background(actions):
        pass


@contextmanager
def in_background(actions: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Do several things at once beside the block; at its end raise what any of them raises."""
    errors: list[BaseException] = []

    def run(action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
