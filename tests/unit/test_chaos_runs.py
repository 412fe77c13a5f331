"""What the fault suite does around its scenarios."""

import random
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest

from chaos import disks, product, runs
from chaos.catalogue import Scenario
from chaos.crashes import failpoints
from chaos.disks import PowerlessDisk
from chaos.product import NotRun
from chaos.runs import Outcome, soak
from chaos.stage import Options
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
