"""The contract for other languages, with Node: its documents, and a producer in JavaScript."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr

from conftest import MakeConsumer
from consumer.testing import RabbitMQ

HERE = Path(__file__).parent
CONTRACT = HERE.parents[1] / "deploy" / "contract"


def node(*arguments: str) -> str:
    """Run a script here; return what it prints."""
    if shutil.which("node") is None or not (HERE / "node_modules").is_dir():
        why = "make test-node installs what this needs"
        if os.environ.get("TEST_NODE"):
            pytest.fail(why)
        pytest.skip(why)
    run = subprocess.run(
        ["node", *arguments], cwd=HERE, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_documents_are_what_their_schemas_say() -> None:
    examples = list((CONTRACT / "examples").glob("*/*.json"))

    assert node("validate.mjs", str(CONTRACT)) == f"{len(examples)} examples\n"


def test_a_tile_from_javascript_ends_in_the_array(
    make_consumer: MakeConsumer, broker: RabbitMQ, prefix: str, tmp_path: Path
) -> None:
    with make_consumer() as consumer:
        node("producer.mjs", f"amqp://guest:guest@{broker.host}", prefix)
        consumer.wait_settled(1)
        assert consumer.stop() == 0

    stored = zarr.open_array(tmp_path / "root/node/d_output.zarr", path="g1/img", mode="r")
    tile = np.arange(64 * 64, dtype="float32").reshape(64, 64) + 0.5
    np.testing.assert_array_equal(stored[0, 8:64, :56], tile[4:60, 4:60])
