"""The fault suite sees what goes wrong without the fence, and nothing with it."""

import os
from pathlib import Path

import pytest

from chaos import crashes, owners, product
from chaos.catalogue import Scenario
from chaos.runs import Outcome, run
from chaos.stage import Options
from consumer.testing import RabbitMQ

TILES = 300
# At each failpoint once.
PAUSES = len(product.FAILPOINTS)


@pytest.fixture
def outcome(broker: RabbitMQ, tmp_path: Path, request: pytest.FixtureRequest) -> Outcome:
    """Two owners of the same blocks, with or without the fence."""
    scenario = Scenario("two_owners", TILES, TILES, owners.two_owners)
    return run(scenario, broker, Options(tmp_path, quick=True, seed=7, without=request.param))


@pytest.mark.parametrize("outcome", [""], indirect=True, ids=["with the fence"])
def test_two_owners_lose_nothing(outcome: Outcome) -> None:
    assert outcome.problems == []
    assert outcome.clean


@pytest.mark.parametrize("outcome", ["fence"], indirect=True, ids=["without the fence"])
def test_two_owners_lose_tiles_where_nobody_fences_them(outcome: Outcome) -> None:
    assert outcome.problems == []
    assert outcome.row.lost > 0
    assert outcome.damaged
    assert not outcome.clean


@pytest.mark.skipif(not os.environ.get("FULL"), reason="takes minutes; FULL=1 runs it")
def test_paused_consumers_do_damage_where_nobody_fences_them(
    broker: RabbitMQ, tmp_path: Path
) -> None:
    scenario = Scenario("sigstop", PAUSES, PAUSES, crashes.sigstop)
    options = Options(tmp_path, quick=True, seed=7, without="fence")
    outcome = run(scenario, broker, options)
    assert outcome.problems == []
    assert outcome.row.faults == PAUSES
    assert outcome.damaged
