"""A cluster of three nodes, of which some die or cannot be reached."""

import time
from collections.abc import Callable, Sequence

from chaos.network import Link
from harness import wait_until
from scale.brokers import Cluster, Node, busiest, consumers, in_parallel, subscribed_elsewhere
from scale.stage import Stage
from scale.watch import Watch

_REPLICAS = 3
_PATIENCE_S = 120.0


def cluster(stage: Stage) -> None:
    """Kill leaders, kill majorities, cut consumers off from a node; all goes on by itself."""
    nodes = stage.broker
    assert isinstance(nodes, Cluster)
    links = [stage.enter(Link(node.host)) for node in nodes.nodes]
    images = stage.prepare(_REPLICAS, hosts=",".join(link.host for link in links))
    watch = stage.watch()
    stage.scale_to(_REPLICAS)
    leaders, majorities, cuts = (2, 1, 1) if stage.options.quick else (10, 3, 3)
    with stage.producing(images):
        stage.wait_all_delivered(watch, time.time(), "at the start")
        _play(stage, watch, "leader", leaders, lambda: _kill_leader(stage, watch, nodes))
        _play(stage, watch, "majority", majorities, lambda: _kill_majority(stage, watch, nodes))
        _play(stage, watch, "cut", cuts, lambda: _cut(stage, watch, nodes, links))
    stage.finish(watch)


def _play(stage: Stage, watch: Watch, name: str, count: int, fault: Callable[[], float]) -> None:
    """Let a fault happen several times, each until all partitions have gone on after it."""
    waits = []
    for number in range(count):
        waits.append(fault())
        stage.wait_all_delivered(watch, time.time(), f"after {name} {number + 1}")
    stage.figures |= {f"{name}s": count, f"{name}_s": max(waits)}


def _kill_leader(stage: Stage, watch: Watch, nodes: Cluster) -> float:
    """Kill the node that leads most partitions; the seconds until the others have gone on."""
    node = nodes.leader(stage.queues)
    node.kill()
    waited = stage.wait_all_delivered(watch, time.time(), "with two of three nodes")
    node.start()
    return waited


def _kill_majority(stage: Stage, watch: Watch, nodes: Cluster) -> float:
    """Kill two nodes and start them again; the seconds until all go on once they are back."""
    victims = stage.chance.sample(nodes.nodes, 2)
    for node in victims:
        node.kill()
    in_parallel([node.start for node in victims])
    return stage.wait_all_delivered(watch, time.time(), "after the majority was lost")


def _cut(stage: Stage, watch: Watch, nodes: Cluster, links: Sequence[Link]) -> float:
    """Cut the way to the node with most active consumers; the seconds until all go on without.

    The cut lasts that long: each replica has to come to another node, and to get deliveries there.
    """
    node = busiest(consumers(nodes), nodes.nodes)
    link, since = links[nodes.nodes.index(node)], time.time()
    link.cut()
    try:
        _wait_moved(stage, nodes, node)
        moved = time.time()
        waited = stage.wait_all_delivered(watch, moved, "while a node is cut off")
    finally:
        link.heal()
    return moved - since + waited


def _wait_moved(stage: Stage, nodes: Cluster, node: Node) -> None:
    """Wait until all replicas consume from all queues by way of other nodes than this one."""
    rows: list[dict[str, str]] = []

    def done() -> bool:
        rows[:] = consumers(nodes)
        there = subscribed_elsewhere(rows, node.name)
        return all(set(stage.running()) <= set(there.get(queue, ())) for queue in stage.queues)

    try:
        wait_until(done, "all replicas at other nodes", _PATIENCE_S, poll_s=0.2)
    except AssertionError as error:
        stage.problem(f"{node.name} is cut off: {error}; {subscribed_elsewhere(rows, node.name)}")
