"""Where the consistent-hash exchange sends store keys, before and after the broker restarts."""

import time

from harness import Channel
from scale.brokers import Node
from scale.figures import moved
from scale.load import keys, routed
from scale.stage import Stage

_KEYS = 200
_WEIGHT = "1"
# Tiles that are sent after each change.
_MORE = 300


def ring(stage: Stage) -> None:
    """Count the stores that move over restarts, bind anew, and change the ring under load."""
    node = stage.broker
    assert isinstance(node, Node)
    images = stage.prepare(3)
    first = _mapping(stage)
    over_restarts, bound_anew = [], []
    for number in range(2 if stage.options.quick else 6):
        node.stop() if number % 2 else node.kill()
        node.start()
        over_restarts.append(moved(first, _mapping(stage)))
        _bind_anew(stage)
        bound_anew.append(moved(first, _mapping(stage)))
    stage.figures |= {"moved": max(over_restarts), "least_moved": min(over_restarts)}
    stage.figures["moved_bound_anew"] = max(bound_anew)
    if any(bound_anew):
        stage.problem(f"bound anew in sorted order, of {_KEYS} stores moved: {bound_anew}")
    watch = stage.watch()
    stage.scale_to(3)
    with stage.producing(images) as producer:
        stage.wait_all_delivered(watch, time.time(), "before the ring changed")
        for _ in range(2 if stage.options.quick else 5):
            _shuffle(stage)
            stage.wait_published(producer, _MORE)
            node.kill()
            node.start()
            stage.wait_published(producer, _MORE)
    stage.finish(watch)


def _mapping(stage: Stage) -> dict[str, str]:
    with stage.channel() as channel:
        return routed(channel, stage.queues, keys(_KEYS))


def _bind_anew(stage: Stage) -> None:
    """Take all queues off the ring, and bind them in sorted order; nobody publishes meanwhile."""
    with stage.channel() as channel:
        for queue in stage.queues:
            _bind(channel, stage, queue, False)
        for queue in sorted(stage.queues):
            _bind(channel, stage, queue, True)


def _shuffle(stage: Stage) -> None:
    """Change the ring under load: queue after queue, in any order."""
    queues = stage.chance.sample(stage.queues, len(stage.queues))
    with stage.channel() as channel:
        for queue in queues:
            _bind(channel, stage, queue, False)
            _bind(channel, stage, queue, True)


def _bind(channel: Channel, stage: Stage, queue: str, bound: bool) -> None:
    exchange = queue.rpartition(".")[0]
    act = channel.channel.queue_bind if bound else channel.channel.queue_unbind
    act(queue, exchange, _WEIGHT)
