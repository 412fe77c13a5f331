"""Where the consistent-hash exchange sends store keys, before and after the broker restarts.

A broker that starts binds all queues anew, side by side. So a single one may put them on the ring
in any order, however they were bound, and stores move: that is counted, not judged. Judged is that
the command that binds them in sorted order brings all stores back, that a cluster of which nodes
restart moves none, and that stores that move lose nothing.
"""

import time

from scale.brokers import Cluster, Node
from scale.figures import moved
from scale.load import keys, routed
from scale.stage import Stage

_KEYS = 200
_WEIGHT = "1"
# Tiles that are sent after each change.
_MORE = 300


def ring(stage: Stage) -> None:
    """Restart a broker with the bindings declared once, bind anew, change the ring under load."""
    node = stage.broker
    assert isinstance(node, Node)
    images = stage.prepare(3)
    first = _mapping(stage)
    over_restarts = []
    for number in range(3 if stage.options.quick else 10):
        _restart(node, number)
        over_restarts.append(moved(first, _mapping(stage)))
    _shuffle(stage)
    stage.operate("rebind")
    rebound = moved(first, _mapping(stage))
    stage.figures |= {
        "restarts": len(over_restarts),
        "restarts_that_moved": sum(map(bool, over_restarts)),
        "most_moved": max(over_restarts),
        "moved_bound_anew": rebound,
    }
    _judge(stage, "bound anew in sorted order", [rebound])
    watch = stage.watch()
    stage.scale_to(3)
    with stage.producing(images) as producer:
        stage.wait_all_delivered(watch, time.time(), "before the ring changed")
        for number in range(2 if stage.options.quick else 5):
            _shuffle(stage)
            stage.wait_published(producer, _MORE)
            _restart(node, number)
            stage.wait_published(producer, _MORE)
            stage.operate("rebind")
            stage.wait_published(producer, _MORE)
    stage.finish(watch)


def ring_of_cluster(stage: Stage) -> None:
    """Restart one node of a cluster after the other: no store moves."""
    nodes = stage.broker
    assert isinstance(nodes, Cluster)
    stage.operate("declare")
    first = _mapping(stage)
    over_restarts = []
    for number in range(3 if stage.options.quick else 9):
        _restart(nodes.nodes[number % len(nodes.nodes)], number)
        over_restarts.append(moved(first, _mapping(stage)))
    stage.figures |= {"restarts": len(over_restarts), "most_moved": max(over_restarts)}
    _judge(stage, "over restarts of a cluster's nodes", over_restarts)


def _judge(stage: Stage, what: str, counts: list[int]) -> None:
    if any(counts):
        stage.problem(f"{what}, of {_KEYS} stores moved: {counts}")


def _restart(node: Node, number: int) -> None:
    """Stop or kill a node, in turn, and start it again."""
    # First what loses no queue that was declared just now: see `faults.wait_registered`.
    node.kill() if number % 2 else node.stop()
    node.start()


def _mapping(stage: Stage) -> dict[str, str]:
    with stage.channel() as channel:
        return routed(channel, stage.queues, keys(_KEYS))


def _shuffle(stage: Stage) -> None:
    """Change the ring under load: queue after queue, in any order."""
    queues = stage.chance.sample(stage.queues, len(stage.queues))
    with stage.channel() as channel:
        for queue in queues:
            exchange = queue.rpartition(".")[0]
            channel.channel.queue_unbind(queue, exchange, _WEIGHT)
            channel.channel.queue_bind(queue, exchange, _WEIGHT)
