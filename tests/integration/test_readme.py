"""What the README shows is what happens."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from conftest import MakeConsumer
from consumer import cli
from consumer.commands import parked
from consumer.settings import load
from consumer.testing import RabbitMQ

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _commands() -> list[list[str]]:
    lines = "".join(_blocks("console")).splitlines()
    return [shlex.split(line[2:]) for line in lines if line.startswith("$ ")]


@pytest.mark.parametrize("number", [0, 1], ids=["TilePublisher", "by hand"])
def test_a_producer_example_ends_in_the_array(
    make_consumer: MakeConsumer, broker: RabbitMQ, tmp_path: Path, number: int
) -> None:
    example = _blocks("python")[number].replace("localhost:5672", broker.host)
    with make_consumer(topology_prefix="tiles") as consumer:
        kept = tmp_path / "tile.npy"
        program = f"{example}\nnumpy.save({str(kept)!r}, tile)\n"
        subprocess.run([sys.executable, "-c", program], check=True)
        consumer.wait_settled(1)
        assert consumer.stop() == 0
    tile = np.load(kept)
    stored = zarr.open_array(tmp_path / "root/plate7/d_output.zarr", path="g1/img", mode="r")
    np.testing.assert_array_equal(stored[:, 416:624, :208], tile[:, 24:232, 24:232])


def test_a_first_tile_is_published_in_under_ten_lines() -> None:
    example, by_hand = _blocks("python")
    assert len(example.strip().splitlines()) < 10
    statements = by_hand.split("\n\n", 1)[1]
    assert len(statements.strip().splitlines()) <= 10


def test_the_table_of_settings_is_the_models() -> None:
    script = REPOSITORY / "deploy" / "scripts" / "settings-table"
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = {command[1] for command in _commands() if command[0] == "make"}
    assert {"demo", "test"} <= named <= targets


def test_the_help_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert f"$ consumer --help\n{shown}" in _blocks("console")


def test_the_run_command_is_accepted() -> None:
    (command,) = (command for command in _commands() if command[:2] == ["consumer", "run"])
    settings = load(command[2:])
    assert str(settings.output_root) == "/data/predictions"


def test_the_parked_commands_are_accepted() -> None:
    commands = [command for command in _commands() if command[:2] == ["consumer", "parked"]]
    assert [parked._parser().parse_args(command[2:]).name for command in commands] == [
        "list", "show", "replay", "export", "drop",
    ]  # fmt: skip


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert [link for link in links if not (REPOSITORY / link).exists()] == []
