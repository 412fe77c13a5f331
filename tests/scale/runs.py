"""Plays a scenario from start to end; what it raises becomes one of its problems."""

import time
import traceback
from dataclasses import dataclass, field

from scale.brokers import Cluster, Node, version
from scale.catalogue import Scenario
from scale.stage import Options, Stage


@dataclass(frozen=True)
class Outcome:
    """What became of a scenario: its figures, and what is not as it must be."""

    scenario: str
    rabbitmq: str
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def run(scenario: Scenario, options: Options) -> Outcome:
    """Play a scenario on a broker of its own: what one leaves there bears on no other."""
    began = time.monotonic()
    with Cluster() if scenario.clustered else Node() as broker:
        ran = version(broker)
        balancing = int(ran.split(".")[0]) >= 4
        with Stage(scenario.name, broker, balancing, options, defaults=scenario.defaults) as stage:
            try:
                scenario.play(stage)
            except Exception:
                stage.problem(traceback.format_exc())
    figures = {name: round(value, 3) for name, value in stage.figures.items()}
    return Outcome(scenario.name, ran, round(time.monotonic() - began, 1), figures, stage.problems)
