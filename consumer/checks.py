"""What `consumer doctor` asks RabbitMQ, and what the answers mean.

Every exception of pika ends here. Nothing that is asked changes anything. Whether a user may
publish or consume shows in *how* it is refused: what is sent is invalid, and before RabbitMQ looks
at that, it looks at permissions, and before these at a message's size. So nothing is routed, and
no consumer starts.
"""

import queue
import re
from collections.abc import Callable, Iterator
from functools import partial

from pika.exceptions import (
    ConnectionBlockedTimeout,
)

from consumer.connection import parameters, prepare_pika
from consumer.errors import PublishError
from consumer.findings import Check, Finding, Verdict
from consumer.questions import FORBIDDEN, NOT_FOUND, Channels, Reply, connected
from consumer.settings import Settings
from consumer.topology import Exchange, Queue, topology

_ANSWER_S = 3.0
_FIRST_VERSION = (3, 10, 0)
_PRODUCTION_VERSION = (4, 1, 2)
_HANGING_VERSIONS = (4, 3, 0), (4, 3, 5)
_TOO_LARGE = re.compile(r"message size \d+ is larger than configured max size (\d+)")
_BLINDING_VERSION = (4, 2, 6)
_USE = "use 4.1.2 or newer, but not 4.2.6, nor 4.3.0 to 4.3.5"
_REMEDY = "see whether RabbitMQ and the network to it are well"
_WORD = "doctor"


def rounds(settings: Settings) -> list[list[Check]]:
    """Return the checks of each node, and those that any node answers."""
    prepare_pika()
    found = _Broker(settings)
    nodes = [[Check(f"node {host}", partial(found.node, host), _REMEDY)] for host in settings.hosts]
    asked = {
        "plugins": found.plugins,
        "topology": found.topology,
        "permissions": found.permissions,
        "message size": found.message_size,
    }
    shared = [Check(name, partial(found.ask, name, look), _REMEDY) for name, look in asked.items()]
    return [*nodes, [Check("RabbitMQ", found.reached, _REMEDY), *shared]]


def version(check: str, product: str, text: str) -> Finding:
    """Return what is known of a version of RabbitMQ."""
    parts = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
    said = f"{product} {text}"
    if product != "RabbitMQ" or parts is None:
        return Finding.warning(check, f"{said} was never tried", _USE)
    number = tuple(map(int, parts.groups()))
    if _HANGING_VERSIONS[0] <= number <= _HANGING_VERSIONS[1]:
        said += ": a queue with a single active consumer can hang"
        return Finding.failed(check, said, "use 4.3.6 or newer, or 4.1.2 to 4.2")
    if number == _BLINDING_VERSION:
        said += ": who may not configure a thing cannot see that it is there"
        return Finding.warning(check, said, _USE)
    if number < _FIRST_VERSION:
        return Finding.failed(check, f"{said} is too old", _USE)
    if number < _PRODUCTION_VERSION:
        said += " is for trials: failover works, balance is best effort"
        return Finding.warning(check, said, _USE)
    return Finding.ok(check, said)


class _Broker:
    """The questions. Each has a connection of its own, so that none inherits another's trouble."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._wanted = topology(settings)
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._host = ""

    def node(self, host: str) -> Iterator[Finding]:
        """Yield whether a node lets us in, and its version."""
        check = f"node {host}"
        try:
            with connected(self._settings, host, _WORD) as connection:
                about = connection._impl.server_properties  # noqa: SLF001 - pika shows it nowhere else
                yield version(check, str(about.get("product")), str(about.get("version")))
                self._host = host
        except PublishError as error:
            said, _, remedy = str(error).rpartition("; ")
            alone = len(self._settings.hosts) == 1
            yield Finding(check, Verdict.FAILED if alone else Verdict.WARNING, said, remedy)
        finally:
            self._answers.put(host)

    def reached(self) -> Iterator[Finding]:
        """Wait for a node that lets us in; yield that of several there is none."""
        hosts = self._settings.hosts
        for _ in hosts:
            self._answers.get()
            if self._host:
                return
        if len(hosts) > 1:
            said = f"none of {', '.join(hosts)} lets us in"
            yield Finding.failed("RabbitMQ", said, "see what is said of the nodes")

    def ask(self, check: str, look: Callable[[Channels], Iterator[Finding]]) -> Iterator[Finding]:
        """Yield what a check finds, or why it could not look."""
        if not self._host:
            yield Finding.unknown(check, "not looked at: no connection to RabbitMQ")
            return
        try:
            with connected(self._settings, self._host, _WORD) as connection:
                yield from look(Channels(connection))
        except PublishError as error:
            said, _, remedy = str(error).rpartition("; ")
            yield Finding.failed(check, said, remedy)
        except ConnectionBlockedTimeout:
            said = "RabbitMQ takes nothing from publishers: it is short of memory or disk"
            yield Finding.failed(check, said, "clear its alarm: rabbitmq-diagnostics alarms")

    def plugins(self, _channels: Channels) -> Iterator[Finding]:
        """Yield which plugins are needed."""
        if self._wanted.ring is None:
            said = "none is needed with one partition; which are enabled cannot be told over AMQP"
            yield Finding.ok("plugins", said)
            return
        said = "more than one partition need rabbitmq_consistent_hash_exchange; whether it is "
        said += f"enabled shows in whether exchange {self._wanted.ring.name} is there"
        yield Finding.ok("plugins", said)

    def topology(self, channels: Channels) -> Iterator[Finding]:
        """Yield what of exchanges and queues is missing or differs."""
        wanted = self._wanted
        things: tuple[Exchange | Queue, ...] = (*wanted.exchanges, *wanted.queues)
        found = [finding for thing in things if (finding := self._compared(channels, thing))]
        yield from found
        if not found:
            yield Finding.ok("topology", f"as designed; {self._depths(channels)}")
        if not self._settings.declare_topology:
            yield Finding.unknown(
                "bindings",
                "cannot be told over AMQP, and declare_topology is false",
                "; ".join(
                    f"see that {b.source} is bound to {b.destination} with {b.routing_key}"
                    for b in wanted.bindings
                ),
            )

    def permissions(self, channels: Channels) -> Iterator[Finding]:
        """Yield whether the user may consume, park and announce."""
        parking, events = self._wanted.parking.name, self._wanted.events.name
        tries = {
            **{
                f"consume from {queue.name}": ("read", channels.refused_consumer(queue.name))
                for queue in self._wanted.partitions
            },
            f"publish to {parking}": ("write", self._refused(channels, parking)),
            f"publish to {events}": ("write", self._refused(channels, events)),
        }
        user, may = self._user(), []
        for act, (right, reply) in tries.items():
            if reply.code == FORBIDDEN:
                said = f"user {user!r} may not {act}: {reply.words}"
                yield Finding.failed("permissions", said, f"give it the right to {right} that")
            elif reply.code == NOT_FOUND:
                yield Finding.unknown("permissions", f"to {act}: {reply.words}")
            else:
                may.append(act)
        if may:
            yield Finding.ok("permissions", f"user {user!r} may {', '.join(may)}")

    def message_size(self, channels: Channels) -> Iterator[Finding]:
        """Yield whether the broker takes the largest message, by sending one that it refuses."""
        size = int(self._settings.max_message_bytes)
        reply = self._refused(channels, self._wanted.parking.name, bytes(size))
        found = _TOO_LARGE.search(reply.words)
        if found is None:
            yield Finding.ok("message size", f"messages of max_message_bytes {size} are taken")
            return
        yield Finding.failed(
            "message size",
            f"RabbitMQ takes at most {found[1]} bytes, max_message_bytes is {size}",
            f"raise max_message_size in rabbitmq.conf to {size}, or lower "
            f"TILES_MAX_MESSAGE_BYTES to {found[1]}",
        )

    def _compared(self, channels: Channels, thing: Exchange | Queue) -> Finding | None:
        """Return what is wrong with an exchange or a queue, looking first whether it is there.

        Only then is it declared: RabbitMQ compares the arguments, and changes nothing.
        """
        what = f"{type(thing).__name__.lower()} {thing.name}"
        reply = channels.declared(thing, passive=True)
        if reply.code in (NOT_FOUND, FORBIDDEN):
            return self._unseen(what, reply)
        if not reply.code:
            reply = channels.declared(thing, passive=False)
        if reply.code == FORBIDDEN and not self._settings.declare_topology:
            said = f"{what} is there; its arguments are compared only for who may configure it"
            return Finding.unknown("topology", said)
        if reply.code == FORBIDDEN:
            remedy = "give the right to configure it, or set TILES_DECLARE_TOPOLOGY=false"
            said = f"user {self._user()!r} may not declare {what}: {reply.words}"
            return Finding.failed("topology", said, remedy)
        if reply.code:
            remedy = "set what it names as it is, or delete it while empty and have it declared"
            return Finding.failed("topology", reply.words, remedy)
        return None

    def _unseen(self, what: str, reply: Reply) -> Finding:
        if reply.code == FORBIDDEN:
            remedy = "give it any right to that, which RabbitMQ 4.3 asks for (4.2.6: to configure)"
            said = f"user {self._user()!r} may not see whether {what} is there: {reply.words}"
            return Finding.failed("topology", said, remedy)
        if self._settings.declare_topology:
            said = f"there is no {what} yet"
            return Finding.warning("topology", said, "start `consumer run`, which declares it")
        remedy = "declare it, or set TILES_DECLARE_TOPOLOGY=true"
        return Finding.failed("topology", f"there is no {what}", remedy)

    def _depths(self, channels: Channels) -> str:
        queues = self._wanted.queues
        counts = [(q.name, channels.declared(q, passive=True).result.method) for q in queues]
        return ", ".join(f"{name} holds {found.message_count} messages" for name, found in counts)

    def _refused(self, channels: Channels, exchange: str, body: bytes = b"") -> Reply:
        return channels.refused_message(exchange, body, f"not {self._user()}")

    def _user(self) -> str:
        return str(parameters(self._settings, self._host, _WORD).credentials.username)
