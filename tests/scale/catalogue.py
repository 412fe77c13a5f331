"""The scenarios by name."""

from collections.abc import Callable
from dataclasses import dataclass

from scale import balance, clusters, owners, ring, throughput
from scale.stage import Stage


@dataclass(frozen=True)
class Scenario:
    """One scenario, on a broker of its own, or on a cluster."""

    name: str
    play: Callable[[Stage], None]
    clustered: bool = False


SCENARIOS = (
    Scenario("replicas", balance.replicas),
    Scenario("failover", balance.failover),
    Scenario("rolling", balance.rolling),
    Scenario("cluster", clusters.cluster, clustered=True),
    Scenario("concurrent", owners.concurrent),
    Scenario("ring", ring.ring),
    Scenario("throughput", throughput.throughput),
)
