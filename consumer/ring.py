"""What operators do with a topology over AMQP: compare, declare or change it, remove an old one.

AMQP cannot list: what is bound beside it, and what other queues there are, is not seen here.
"""

import re
from collections.abc import Iterator

from consumer.findings import Finding
from consumer.questions import DIFFERENT, FORBIDDEN, NOT_FOUND, Channels, Reply
from consumer.topology import Binding, Exchange, Queue, Topology

_ARGUMENT = re.compile(
    r"inequivalent arg '([^']+)' for .*: received (?:the value )?(.*) but current is (.*)", re.S
)
_PLUGIN = "rabbitmq-plugins enable rabbitmq_consistent_hash_exchange"
# What decides an argument, where a setting does.
_SETTINGS = {
    "x-max-length-bytes": "TILES_QUEUE_MAX_BYTES",
    "x-delivery-limit": "TILES_DELIVERY_LIMIT",
}


def compared(channels: Channels, wanted: Topology) -> Iterator[Finding]:
    """Yield of each exchange and queue whether it is there, and as wanted."""
    for thing in _things(wanted):
        yield _compared(channels, thing)


def declared(channels: Channels, wanted: Topology) -> Iterator[Finding]:
    """Declare everything; yield what became of each thing. Ends with the first that is refused."""
    for thing in _things(wanted):
        reply = channels.declared(thing, passive=False)
        yield _outcome(thing, reply, "is there")
        if reply.code:
            return
    for binding in wanted.bindings:
        reply = channels.bound(binding)
        yield _bound(binding, reply, "is bound to")
        if reply.code:
            return


def unbound(channels: Channels, old: Topology) -> Iterator[Finding]:
    """Let nothing more come to the partitions of an old topology."""
    yield _bound(old.entrance, channels.bound(old.entrance, away=True), "is no longer bound to")


def rebound(channels: Channels, wanted: Topology) -> Iterator[Finding]:
    """Bind the partitions anew in sorted order, one after the other; ends with the first refusal.

    At any time all but one are bound, so that each key has a partition, if not always the same.
    """
    for queue in wanted.partitions:
        for binding in wanted.bindings_of(queue):
            channels.bound(binding, away=True)
            reply = channels.bound(binding)
            yield _bound(binding, reply, "is bound anew to")
            if reply.code:
                return


def removed(channels: Channels, old: Topology) -> Iterator[Finding]:
    """Delete an old topology's partitions, if none holds a message or has a consumer.

    Nothing is deleted where one does: then nothing more comes, and another try will do. Nor where
    something may still come.
    """
    reply = channels.bound(old.entrance, away=True)
    if reply.code and reply.code != NOT_FOUND:
        yield _bound(old.entrance, reply, "")
        return
    yield _bound(old.entrance, Reply(), "is no longer bound to")
    kept = [finding for queue in old.partitions if (finding := _in_use(channels, queue))]
    yield from kept
    if kept:
        return
    for thing in (*old.partitions, *((old.ring,) if old.ring else ())):
        reply = channels.deleted(thing)
        # A queue that is not there is deleted, says RabbitMQ.
        yield _outcome(thing, reply, "is removed")


def _things(wanted: Topology) -> tuple[Exchange | Queue, ...]:
    return (*wanted.exchanges, *wanted.queues)


def _in_use(channels: Channels, queue: Queue) -> Finding | None:
    """Return why a queue must stay; None where nothing is lost with it."""
    reply = channels.counted(queue.name)
    if reply.code == NOT_FOUND:
        return None
    if reply.code:
        return Finding.failed(_what(queue), f"cannot be counted: {reply.words}", "try again later")
    ready, consumers = reply.result
    if consumers:
        said = f"has a consumer, and {ready} messages wait"
        remedy = "once none waits, end the consumers that have its number of partitions; try again"
        return Finding.failed(_what(queue), said, remedy)
    if ready:
        said, remedy = f"holds {ready} messages", "have consumers drain it, then try again"
        return Finding.failed(_what(queue), said, remedy)
    return None


def _compared(channels: Channels, thing: Exchange | Queue) -> Finding:
    reply = channels.declared(thing, passive=True)
    if not reply.code:
        # RabbitMQ compares the arguments, and changes nothing.
        reply = channels.declared(thing, passive=False)
        if reply.code == FORBIDDEN:
            said = "is there; its arguments are compared only for who may configure it"
            return Finding.unknown(_what(thing), said)
    return _outcome(thing, reply, "as wanted")


def _outcome(thing: Exchange | Queue, reply: Reply, well: str) -> Finding:
    check = _what(thing)
    if not reply.code:
        return Finding.ok(check, well)
    if reply.code == NOT_FOUND:
        return Finding.failed(check, "missing", "run `consumer topology declare`")
    # RabbitMQ 3 says COMMAND_INVALID, RabbitMQ 4 PRECONDITION_FAILED, as for a difference.
    if "unknown exchange type" in reply.words:
        return Finding.failed(check, f"cannot be declared: {reply.words}", _PLUGIN)
    if reply.code == DIFFERENT:
        return Finding.failed(check, *_difference(thing, reply.words))
    if reply.code == FORBIDDEN:
        return Finding.failed(check, reply.words, "take a user that may configure it")
    return Finding.failed(check, reply.words, "see what the broker says")


def _difference(thing: Exchange | Queue, words: str) -> tuple[str, str]:
    """Return the broker's words in plain ones, and what to do."""
    found = _ARGUMENT.search(words)
    again = f"or remove {_what(thing)}, a queue once it is empty, and declare it again"
    if found is None:
        return f"different: {words}", f"have it as it is; {again}"
    name, given, current = found.groups()
    said = f"different: {name} is {_value(current)}, wanted is {_value(given)}"
    setting = _SETTINGS.get(name)
    keep = f"set {setting} to what it is" if setting else "have the consumer's version that made it"
    return said, f"{keep}; {again}"


def _value(words: str) -> str:
    """Return `the value '7' of type 'long'` as `7`."""
    found = re.search(r"'([^']*)'", words)
    return found[1] if found else words.strip()


def _bound(binding: Binding, reply: Reply, well: str) -> Finding:
    check = f"binding {binding.source} to {binding.destination}"
    if reply.code:
        return Finding.failed(check, reply.words, "see that both are there, and who may bind them")
    return Finding.ok(check, f"{well} {binding.source}")


def _what(thing: Exchange | Queue) -> str:
    return f"{type(thing).__name__.lower()} {thing.name}"
