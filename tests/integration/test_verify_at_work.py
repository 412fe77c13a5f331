"""`consumer verify` beside a consumer at work: what is being replaced is no damage."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeConsumer
from consumer import cli
from harness import Channel, voxels

SIDE, TILE = 700, 50
ARRAY = {"store": "p/a.zarr", "array": "x", "axes": "CYX", "shape": [1, SIDE, SIDE]}
KINDS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": [1, 64, 64]},
    # Most of them lie at the edge, where zarr reads a shard in parts.
    "shards": {"chunks": [1, 64, 64], "shards": [1, 512, 512]},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_consumer_at_work_damages_nothing(
    make_consumer: MakeConsumer,
    producer: Channel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: dict[str, Any],
) -> None:
    image = voxels((1, SIDE, SIDE))
    places = [(y, x) for y in range(0, SIDE, TILE) for x in range(0, SIDE, TILE)]
    random.Random(0).shuffle(places)
    percents: list[float] = []
    with make_consumer(idle_s=0.05, max_age_s=0.2) as consumer:
        for count, (y, x) in enumerate(places, 1):
            said = ARRAY | kind | {"tiles": [{"stitch_coords": [y, x]}]}
            producer.send(said, [image[:, y : y + TILE, x : x + TILE]])
            if count % 8 == 0:
                code = cli.main(
                    ["verify", "p/a.zarr/x", "--output-root", f"{tmp_path}/root", "--json"]
                )
                told = capsys.readouterr()
                # At first there is nothing yet.
                assert code == 0 or (code == 2 and not percents), told
                percents += [json.loads(told.out)["percent"]] if code == 0 else []
        consumer.wait_settled(len(places))
        assert consumer.stop() == 0

    # It was looked at on its way.
    assert len(set(percents)) > 2
    assert percents == sorted(percents)
    assert cli.main(["verify", "p/a.zarr/x", "--output-root", f"{tmp_path}/root"]) == 0
    assert "no damage; complete; " in capsys.readouterr().out
