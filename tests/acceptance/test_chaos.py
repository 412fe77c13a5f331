"""The fault suite sees what goes wrong without the fence, and nothing with it."""

from pathlib import Path

import pytest

from chaos import owners
from chaos.catalogue import Scenario
from chaos.runs import Outcome, run
from chaos.stage import Options
from consumer.testing import RabbitMQ

TILES = 300


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
    assert not outcome.clean
