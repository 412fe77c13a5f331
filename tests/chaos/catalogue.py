"""The scenarios by name, with what each counts in full and in short."""

from collections.abc import Callable
from dataclasses import dataclass

from chaos import crashes, outages, owners, poison, soak, storage
from chaos.stage import Stage


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Attributes
    ----------
    full, quick : int
        Faults or tiles.
    play : callable
        Plays it with so many, and counts them.
    """

    name: str
    full: int
    quick: int
    play: Callable[[Stage, int], None]


SCENARIOS = (
    Scenario("sigkill", 100, 10, crashes.sigkill),
    Scenario("sigterm", 50, 5, crashes.sigterm),
    Scenario("sigstop", 50, 7, crashes.sigstop),
    Scenario("two_owners", 10_000, 1_000, owners.two_owners),
    Scenario("broker_restart", 20, 2, outages.broker_restart),
    Scenario("partition", 20, 2, outages.partition),
    Scenario("disk_full", 10, 1, storage.disk_full),
    Scenario("io_errors", 20_000, 2_000, storage.io_errors),
    Scenario("slow_fsync", 3, 1, storage.slow_fsync),
    Scenario("power_loss", 50, 5, storage.power_loss),
    Scenario("store_removed", 10, 2, storage.store_removed),
    Scenario("memory_alarm", 3, 1, outages.memory_alarm),
    Scenario("poison", 10_000, 1_000, poison.poison),
)
# Rounds of it, for as long as is asked for.
SOAK = Scenario("soak", 20, 20, soak.mix)
# Those that fail where something is switched off.
PROOFS = {
    "fence": ["two_owners", "sigstop"],
    "fsync": ["power_loss"],
    "folder-fsync": ["power_loss"],
}
