"""What scenarios need of the product beyond its settings, and whether it has it."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import consumer
from consumer.blocks import ArrayKey
from consumer.ledger_files import read
from consumer.settings import Settings

# By what happens there: every step of taking a store, of a commit and of acknowledging.
FAILPOINTS = {
    "take": ("take.list", "take.mkdir", "take.remove"),
    "write": ("commit.write",),
    "fsync": ("commit.fsync",),
    "rename": ("commit.rename",),
    "folder fsync": ("commit.sync_folder",),
    "ledger": ("ledger.rename", "ledger.sync_folder"),
    "acknowledge": ("acknowledge",),
}
FENCE_OFF = "fence=off"


class NotRun(Exception):
    """A scenario that cannot be run: the machine does not permit it."""


class NotBuilt(NotRun):
    """A scenario that cannot be run: the product lacks what it tries."""


class NoLedger(Exception):
    """An array without a ledger, or with one that cannot be read."""


def has_failpoints() -> bool:
    """Whether `TILES_FAILPOINTS` is understood."""
    return "failpoints" in Settings.model_fields or find_spec("consumer.failpoints") is not None


def has_ledger() -> bool:
    """Whether the service, and not its commands only, knows of ledgers."""
    modules = Path(consumer.__file__).parent.glob("*.py")
    service = [path for path in modules if not path.stem.startswith("ledger")]
    return any("consumer.ledger_files" in path.read_text() for path in service)


def need_failpoints() -> None:
    """Raise NotBuilt where there are none."""
    if not has_failpoints():
        raise NotBuilt("the product has no failpoints")


def missing(root: Path, store: str, array: str) -> Iterator[tuple[slice, ...]]:
    """Yield the regions that the ledger calls missing; raises NoLedger."""
    ledger, damages = read(root, ArrayKey(store, array))
    if ledger is None or damages:
        raise NoLedger("; ".join(damages) or "there is none")
    return (box.slices for box in ledger.missing())
