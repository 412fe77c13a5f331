"""The scenarios by name."""

from collections.abc import Callable
from dataclasses import dataclass

from scale import balance, clusters, moving, owners, ring, throughput
from scale.stage import Stage


@dataclass(frozen=True)
class Scenario:
    """One scenario, on a broker of its own, or on a cluster.

    Attributes
    ----------
    defaults : bool
        Whether its replicas have the product's own settings.
    """

    name: str
    play: Callable[[Stage], None]
    clustered: bool = False
    defaults: bool = False


SCENARIOS = (
    Scenario("replicas", balance.replicas),
    Scenario("failover", balance.failover),
    Scenario("rolling", balance.rolling),
    Scenario("replicas_default", balance.replicas, defaults=True),
    Scenario("rolling_default", balance.rolling, defaults=True),
    Scenario("cluster", clusters.cluster, clustered=True),
    Scenario("concurrent", owners.concurrent),
    Scenario("ring", ring.ring),
    Scenario("ring_of_cluster", ring.ring_of_cluster, clustered=True),
    Scenario("moving", moving.moving),
    Scenario("throughput", throughput.throughput),
)
