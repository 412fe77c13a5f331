"""A cluster of three nodes, of which some die or cannot be reached."""

import time
from collections.abc import Callable

from chaos.network import Link
from harness import wait_until
from scale.brokers import Cluster, in_parallel
from scale.stage import HEARTBEAT_S, Stage
from scale.watch import Watch

_REPLICAS = 3
_CUT_S = 4 * HEARTBEAT_S


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
        _play(stage, watch, "cut", cuts, lambda: _cut(stage, watch, links))
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
    node, since = nodes.leader(stage.queues), time.time()
    node.kill()
    waited = stage.wait_all_delivered(watch, since, "with two of three nodes")
    node.start()
    return waited


def _kill_majority(stage: Stage, watch: Watch, nodes: Cluster) -> float:
    """Kill two nodes and start them again; the seconds until all go on once they are back."""
    victims = stage.chance.sample(nodes.nodes, 2)
    for node in victims:
        node.kill()
    in_parallel([node.start for node in victims])
    return stage.wait_all_delivered(watch, time.time(), "after the majority was lost")


def _cut(stage: Stage, watch: Watch, links: list[Link]) -> float:
    """Cut the way to one node for more than three heartbeats; the seconds until all go on."""
    link, since = stage.chance.choice(links), time.time()
    link.cut()
    try:
        wait_until(lambda: time.time() > since + _CUT_S, "the end of a cut")
    finally:
        link.heal()
    return stage.wait_all_delivered(watch, time.time(), "after a cut")
