"""What the fault suite does around its scenarios."""

import fcntl
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest

from chaos import disks, product, report, runs
from chaos.__main__ import good, parse
from chaos.catalogue import Scenario
from chaos.crashes import failpoints
from chaos.disks import CommandFailed, PowerlessDisk, together
from chaos.outages import alarm_problems
from chaos.product import NotRun
from chaos.runs import Outcome, soak
from chaos.stage import Options, Stage
from chaos.storage import Hang
from chaos.verdict import Row
from consumer.commit import Commit
from consumer.failpoints import Unfenced
from consumer.testing import RabbitMQ

NO_BROKER = cast("RabbitMQ", None)
CLEAN = Outcome(Row("soak", faults=1, published=1), 0)
LOST = Outcome(Row("soak", faults=1, published=1, lost=7), 0, problems=["something odd"])
THE_END = Outcome(Row("soak"), 0, NotRun("enough"))


@pytest.fixture
def _rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What becomes of the rounds of a soak; each leaves a file with its seed."""
    left = iter([CLEAN, LOST, CLEAN, LOST, THE_END])

    def run(_scenario: Scenario, _broker: RabbitMQ, options: Options) -> Outcome:
        folder = options.folder / "soak"
        folder.mkdir(exist_ok=True)
        (folder / "seed").write_text(str(options.seed))
        return next(left)

    monkeypatch.setattr(runs, "run", run)


@pytest.mark.usefixtures("_rounds")
def test_the_folder_of_each_unclean_round_of_a_soak_is_kept(tmp_path: Path) -> None:
    soak(NO_BROKER, Options(tmp_path, quick=False, seed=5), minutes=60)
    kept = {path.name: (path / "seed").read_text() for path in tmp_path.glob("seed-*")}
    assert kept == {"seed-6": "6", "seed-8": "8"}


@pytest.mark.usefixtures("_rounds")
def test_what_is_wrong_with_a_round_of_a_soak_is_printed_at_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soak(NO_BROKER, Options(tmp_path, quick=False, seed=5), minutes=60)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "soak seed 5: clean"
    wrong = printed[printed.index("soak seed 6: NOT CLEAN") : printed.index("soak seed 7: clean")]
    assert any("lost=7" in line for line in wrong)
    assert "  something odd" in wrong


@pytest.mark.parametrize(("kind", "without"), [(Commit, ""), (Unfenced, "fence")])
def test_each_failpoint_that_is_armed_can_be_reached(
    tmp_path: Path, kind: type[Commit], without: str
) -> None:
    passed = {"acknowledge"}
    for _ in range(2):
        # Nobody lets go of it, as when a consumer is killed.
        taken = kind.take(tmp_path, "a.zarr", file_mode=0o644, folder_mode=0o755, step=passed.add)
        taken.commit({"x": [b"x"]}, {"x": [b"x"]})
    armed = {text.partition("=")[0] for text in islice(failpoints(random.Random(1), without), 500)}
    assert armed <= passed
    assert len(armed) >= len(product.FAILPOINTS)


@pytest.mark.parametrize("first", [True, False], ids=["at first", "later"])
def test_a_round_of_a_soak_that_cannot_be_run_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, first: bool
) -> None:
    rounds = iter([THE_END] if first else [LOST, THE_END])

    def run(_scenario: Scenario, _broker: RabbitMQ, options: Options) -> Outcome:
        (options.folder / "soak").mkdir()
        return next(rounds)

    monkeypatch.setattr(runs, "run", run)
    total = soak(NO_BROKER, Options(tmp_path, quick=False, seed=5), minutes=60)
    assert (total.not_run is not None) == first
    assert (total.row.lost, total.row.faults) == ((0, 0) if first else (7, 1))
    assert not total.clean


@pytest.mark.parametrize("faults", [0, 1])
def test_what_the_machine_does_not_permit_after_a_fault_is_a_problem(
    tmp_path: Path, faults: int
) -> None:
    def play(stage: Stage, _count: int) -> None:
        stage.faults = faults
        raise NotRun("no such thing here")

    options = Options(tmp_path, quick=True, seed=5)
    outcome = runs.run(Scenario("sigkill", 1, 1, play), NO_BROKER, options)
    assert (outcome.not_run is None) == bool(faults)
    assert any("no such thing here" in problem for problem in outcome.problems) == bool(faults)
    assert not outcome.clean


def _refuse(*command: str) -> None:
    raise CommandFailed(f"{command[0]} failed")


def test_a_disk_that_cannot_be_mounted_at_first_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "_run", _refuse)
    with pytest.raises(NotRun, match="mkfs"):
        PowerlessDisk(tmp_path, tmp_path / "mounted").__enter__()


@pytest.mark.parametrize("act", [PowerlessDisk.mount, PowerlessDisk.unmount])
def test_a_disk_that_cannot_be_mounted_or_unmounted_later_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[PowerlessDisk], None]
) -> None:
    monkeypatch.setattr(disks, "_run", _refuse)
    with pytest.raises(CommandFailed):
        act(PowerlessDisk(tmp_path, tmp_path / "mounted"))


def test_a_power_cut_that_was_possible_before_and_fails_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, answers = PowerlessDisk(tmp_path, tmp_path), iter([None, OSError("no more")])

    def ioctl(*_: object) -> None:
        if answer := next(answers):
            raise answer

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    disk.cut()
    with pytest.raises(OSError, match="no more"):
        disk.cut()


def test_environments_with_a_sitecustomize_each_are_joined(tmp_path: Path) -> None:
    made = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        code = f"import os; first = {name!r}\ndef say(): print(first)\nos.{name} = say"
        (folder / "sitecustomize.py").write_text(code)
        made.append({"PYTHONPATH": str(folder), f"OF_{name}": name})
    environment = together(tmp_path, *made)
    assert environment.items() >= {"OF_a": "a", "OF_b": "b"}.items()
    command = [sys.executable, "-c", "import os; os.a(); os.b()"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["a", "b"]


NOT_RUN = Outcome(Row("sigkill"), 1, NotRun("no"))
WELL = Outcome(Row("sigkill", faults=1, published=1), 1)
DAMAGED = Outcome(Row("sigkill", faults=1, published=1, lost=1), 1)
TIMED_OUT = replace(DAMAGED, problems=["waited in vain"])


@pytest.mark.parametrize(
    ("outcome", "arguments", "ci", "expected"),
    [
        (WELL, [], "", True),
        (DAMAGED, [], "", False),
        (NOT_RUN, [], "", False),
        (NOT_RUN, ["--skip-impossible"], "", True),
        (NOT_RUN, ["--quick"], "", True),
        (NOT_RUN, ["--quick"], "true", False),
        (NOT_RUN, ["--skip-impossible"], "true", False),
        (WELL, ["--without", "fence"], "", False),
        (DAMAGED, ["--without", "fence"], "", True),
        (TIMED_OUT, ["--without", "fence"], "", False),
        (NOT_RUN, ["--without", "fence"], "", False),
    ],
)
def test_the_exit_code_tells_whether_a_row_is_as_it_must_be(
    monkeypatch: pytest.MonkeyPatch,
    outcome: Outcome,
    arguments: list[str],
    ci: str,
    *,
    expected: bool,
) -> None:
    monkeypatch.setenv("CI", ci)
    assert good(outcome, parse(arguments)) == expected


def test_a_run_of_one_scenario_leaves_the_rows_of_others(tmp_path: Path) -> None:
    file, options = tmp_path / "latest.json", Options(tmp_path, quick=True, seed=5)
    for outcome in (WELL, CLEAN, replace(LOST, recoveries=[1.0, 4.0, 2.0]), NOT_RUN):
        report.write(file, outcome, options)
    told = json.loads(file.read_text())
    (row,) = told["scenarios"]
    assert (row["name"], row["lost"], row["clean"]) == ("soak", 7, False)
    assert (row["recovery_median_s"], row["recovery_worst_s"]) == (2.0, 4.0)
    assert told["not_run"] == [{"name": "sigkill", "reason": "no"}]


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (Hang(60, 24, oldest_s=12.1, channels=2), ""),
        (Hang(60, 24, oldest_s=12.3, channels=2), "held for 12.3 s"),
        (Hang(60, 24, oldest_s=12.1, channels=2, connections=1), "1 connections"),
        (Hang(60, 24, oldest_s=12.1), "nothing was given back"),
        (Hang(10, 24, oldest_s=10), ""),
        (Hang(10, 24, oldest_s=10, dead_s=3), "not live"),
    ],
)
def test_what_is_wrong_while_a_disk_hangs_is_told(seen: Hang, told: str) -> None:
    assert told in " ".join(seen.problems())
    assert bool(told) == bool(list(seen.problems()))


def test_an_alarm_that_keeps_nothing_from_being_parked_is_a_problem() -> None:
    assert alarm_problems(12, 11) == []
    assert alarm_problems(12, 12) != []


def test_a_disk_is_unmounted_once_no_loop_device_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = PowerlessDisk(tmp_path, tmp_path / "mounted")
    try:
        disk.__enter__()
    except NotRun as reason:
        pytest.skip(str(reason))
    run: Any = disks._run

    def late(*command: str) -> None:
        # The mount goes, and the device stays for who has it in his view of the mounts.
        run("umount", "-l", command[-1]) if command[0] == "umount" else run(*command)

    held = (tmp_path / "mounted" / "file").open("w")
    monkeypatch.setattr(disks, "_run", late)
    monkeypatch.setattr(disks, "wait_until", lambda condition, _what: seen.append(condition()))
    seen: list[bool] = []
    disk.unmount()
    held.close()
    assert seen == [False]
    monkeypatch.undo()
    disk.mount()
    disk.unmount()
