"""The help of each command: its purpose in a line, examples, and each option's default and unit."""

import re
import shlex

import pytest

from consumer import cli
from consumer.commands import publish

PARKED = ["list", "show", "replay", "export", "drop"]
COMMANDS = [*cli.COMMANDS, *(f"parked {name}" for name in PARKED)]
# What an option's name says of its unit, and what its text must then have.
UNITS = {
    r"-s$|^--(timeout|interval)$": r"seconds",
    r"-bytes$": r"bytes|\d [KMG]iB",
    r"^--(tile|overlap|chunks|shards)$": r"voxels",
}


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `--help` says."""
    try:
        code: object = cli.main([*command.split(), "--help"])
    except SystemExit as ended:
        code = ended.code
    assert code == 0
    return capsys.readouterr().out


def options(said: str) -> dict[str, tuple[str, str]]:
    """Return what the help says of each option: what follows its name, and its text."""
    name, value, negated = r"(?:-\w, )?(--[a-z-]+)", r"(?: (\S+))?", r"(?:, --no-\S+)?"
    found = re.findall(rf"^  {name}{value}{negated}(?:\n {{24}}| +)(\S.*)$", said, re.MULTILINE)
    return {name: (value, text) for name, value, text in found}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.mark.parametrize("command", COMMANDS)
def test_it_begins_with_the_purpose_in_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, purpose, _ = help_of(command, capsys).split("\n\n", 2)
    assert re.fullmatch(r"[A-Z].{15,98}\.", purpose)


@pytest.mark.parametrize("command", COMMANDS)
def test_it_ends_with_examples_of_the_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, last = help_of(command, capsys).strip().split("\n\n")
    head, *examples = last.splitlines()
    assert head == ("examples:" if len(examples) > 1 else "example:")
    assert all(example.startswith(f"  consumer {command} ") for example in examples)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_that_takes_a_value_says_its_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    taking = {
        name: text for name, (value, text) in options(help_of(command, capsys)).items() if value
    }
    lacking = [name for name, text in taking.items() if not re.search("default: .|required", text)]
    assert lacking == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_says_its_unit(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (_, text) in options(help_of(command, capsys)).items():
        for named, unit in UNITS.items():
            assert not re.search(named, name) or re.search(unit, text), (name, text)


def test_the_options_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert options(help_of("wait", capsys)) == {
        "--help": ("", "show this help message and exit"),
        "--output-root": (
            "FOLDER",
            "folder below which all stores are written; default: TILES_OUTPUT_ROOT",
        ),
        "--config-file": ("FILE", "TOML file with settings; default: TILES_CONFIG_FILE"),
        "--timeout": ("SECONDS", "the longest wait, seconds; default: as long as it takes"),
        "--interval": ("SECONDS", "time between two looks, seconds; default: 1"),
        "--allow-parked": ("TILES", "go on waiting with so many tiles parked; default: 0"),
    }


def test_the_example_of_publish_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    *_, last = help_of("publish", capsys).strip().split("\n\n")
    first, second = map(shlex.split, last.splitlines()[1:])
    assert publish._parser().parse_args(first[2:]).missing_from is None
    assert publish._parser().parse_args(second[2:]).missing_from == "/data/predictions"


WRONG = {
    "run": ["--output-root", "/data"],
    "status": [],
    "missing": ["a.zarr/x"],
    "verify": ["a.zarr/x"],
    "wait": ["a.zarr/x"],
    "reset": ["a.zarr/x"],
    "publish": ["x.npy", "--store", "a.zarr"],
    "parked": ["list"],
    "schema": ["json"],
}


@pytest.mark.parametrize(("command", "needed"), WRONG.items(), ids=list(WRONG))
def test_a_wrong_option_is_told_in_one_line(
    command: str, needed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, *needed, "--wrong"]) == 2
    told = capsys.readouterr().err
    # The settings' own parser says it a little differently.
    assert re.fullmatch(rf"consumer: .*--wrong; see consumer {command} --help\n", told)


def test_parked_without_a_command_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["parked"]) == 2
    assert capsys.readouterr().err == (
        "consumer: the following arguments are required: COMMAND; see consumer parked --help\n"
    )


def test_defaults_are_shown_as_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    said = options(help_of("run", capsys))
    defaults = {name: text.rpartition("default: ")[2] for name, (_, text) in said.items()}
    wanted = {
        "--file-mode": "0644",
        "--memory-budget-bytes": "1 GiB",
        "--log-level": "INFO",
        "--hosts": "localhost:5672",
        "--max-age-s": "300",
        "--tls": "false",
        "--tls-key-file": "none",
        "--workers": "the number of cores",
    }
    assert {name: defaults[name] for name in wanted} == wanted
