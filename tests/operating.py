"""`consumer topology`, as an operator runs it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from consumer.testing import RabbitMQ


@dataclass(frozen=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    said: str


def topology(broker: RabbitMQ, prefix: str, *words: str, **settings: Any) -> Said:
    """Run `consumer topology` to its end."""
    named = {"hosts": broker.host, "topology_prefix": prefix} | settings
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TILES_")}
    environment |= {f"TILES_{name}".upper(): str(value) for name, value in named.items()}
    found = subprocess.run(
        [sys.executable, "-m", "consumer.cli", "topology", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Said(found.returncode, found.stdout + found.stderr)
