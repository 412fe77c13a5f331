"""CAREamics itself predicts real images, to disk with its own Zarr strategy and through ours."""

import itertools
import json
import os
import pickle
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from cases import DDP, NEWER, OLDER, REFUSED, RIGHT, WRONG, Case, Source, split
from consumer.testing import RabbitMQ
from harness import wait_until
from stitching import Stitching, running

Values = npt.NDArray[Any]

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
ENVIRONMENTS = {"newer": PROJECT / ".venv-careamics", "older": PROJECT / ".venv-careamics-older"}
SETS = {"newer": NEWER, "ddp": DDP, "older": OLDER}
CASES = [pytest.param(kind, case, id=case.slug) for kind, cases in SETS.items() for case in cases]

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Outcome:
    """What became of a case: what was refused, what is stored, and what it had to be."""

    case: Case
    theirs_error: str | None
    ours_error: str | None
    wanted: Sequence[Values]
    theirs: Sequence["zarr.Array[Any] | None"]
    ours: Sequence["zarr.Array[Any] | None"]

    def lost(self, found: Sequence["zarr.Array[Any] | None"]) -> int:
        """Return how many voxels differ from what they had to be."""
        pairs = zip(found, self.wanted, strict=True)
        return sum(_differing(array, wanted) for array, wanted in pairs)

    @property
    def row(self) -> tuple[str, str, str]:
        """Return whether CAREamics is right, whether we are, and what CAREamics loses."""
        # Ranks that create one array at once may also fail.
        refused = self.theirs_error and self.case.devices == 1
        theirs = REFUSED if refused else WRONG if self.lost(self.theirs) else RIGHT
        ours = REFUSED if self.ours_error else WRONG if self.lost(self.ours) else RIGHT
        if theirs != WRONG:
            return theirs, ours, "0" if theirs == RIGHT else "none written"
        count, total = self.lost(self.theirs), sum(wanted.size for wanted in self.wanted)
        return theirs, ours, f"{count} of {total} ({count / total:.0%})"


def _differing(found: "zarr.Array[Any] | None", wanted: Values) -> int:
    if found is None or found.shape != wanted.shape:
        return wanted.size
    return int(np.count_nonzero(np.asarray(found[:]) != wanted))


class Predictions:
    """Runs the cases, each set once, in the environment of its generation."""

    def __init__(self, run: Stitching, folder: Path) -> None:
        self._run = run
        self._folder = folder
        self._outcomes: dict[str, Outcome] = {}

    def outcome(self, kind: str, case: Case) -> Outcome:
        """Return what became of a case."""
        if case.title not in self._outcomes:
            self._predict("older" if kind == "older" else "newer", SETS[kind])
        return self._outcomes[case.title]

    def table(self) -> Iterator[str]:
        """Yield the rows of the cases that were run."""
        yield "| case | CAREamics right? | ours right? | voxels that differ in CAREamics |"
        yield "| --- | --- | --- | --- |"
        for title, outcome in self._outcomes.items():
            yield f"| {title} | {' | '.join(outcome.row)} |"

    def _predict(self, environment: str, cases: Sequence[Case]) -> None:
        theirs = [self._described(case, publish=False) for case in cases]
        ours = [self._described(case, publish=True) for case in cases]
        alone = (
            cases[0].devices > 1
        )  # what one rank of CAREamics' own raises leaves the other alone
        groups = [*([run] for run in theirs), ours] if alone else [theirs + ours]
        errors: dict[str, str] = {}
        for number, group in enumerate(groups):
            errors |= self._execute(environment, f"{cases[0].slug}-{number}", group)
        self._drain()
        for case in cases:
            self._outcomes[case.title] = self._look(case, errors)

    def _described(self, case: Case, *, publish: bool) -> dict[str, Any]:
        """Return a run as `predict.py` takes it."""
        work, root = self._folder / case.slug, self._run.root
        broker = {
            "root": str(root),
            "broker": self._run.producer.broker.host,
            "prefix": self._run.producer.prefix,
        }
        return {
            "name": f"{case.title}, {'ours' if publish else 'theirs'}",
            "sources": [source.write(work / f"sources-{publish}") for source in case.sources],
            "dirpath": str(root / case.slug if publish else work / "written"),
            "publish": broker if publish else None,
            "record": str(work / "tiles"),
            **{name: getattr(case, name) for name in _FORWARDED},
        }

    def _execute(
        self, environment: str, name: str, runs: Sequence[Mapping[str, Any]]
    ) -> dict[str, str]:
        folder = self._folder / f"runs-{name}"
        folder.mkdir()
        (folder / "runs.json").write_text(json.dumps(runs))
        done = subprocess.run(
            [_python(environment), str(HERE / "predict.py"), str(folder / "runs.json")],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        told = done.stdout[-2000:] + done.stderr[-4000:]
        if done.returncode != 0 and runs[0]["devices"] > 1 and runs[0]["publish"] is None:
            return {str(runs[0]["name"]): told}
        assert done.returncode == 0, told
        found: dict[str, str] = json.loads((folder / "errors.json").read_text())
        return found

    def _drain(self) -> None:
        """Return once all that was published is in the arrays."""
        queue = f"{self._run.producer.prefix}.00"
        wait_until(lambda: self._run.producer.depth(queue) == 0, "everything delivered")
        assert self._run.consumer.stop() == 0
        assert self._run.parked() == []
        self._run.consumer.start()

    def _look(self, case: Case, errors: Mapping[str, str]) -> Outcome:
        work = self._folder / case.slug
        tiles = [tile for file in work.glob("tiles-*") for tile in pickle.loads(file.read_bytes())]
        return Outcome(
            case,
            errors.get(f"{case.title}, theirs"),
            errors.get(f"{case.title}, ours"),
            case.stitch(tiles),
            [_open(work / "written", x.theirs) for x in case.sources],
            [_open(self._run.root / case.slug, x.ours) for x in case.sources],
        )


_FORWARDED = (
    "attach",
    "axes",
    "batch_size",
    "careamist",
    "channels",
    "data_type",
    "devices",
    "overlap",
    "target_axes",
    "tile",
)


def _python(environment: str) -> str:
    python = ENVIRONMENTS[environment] / "bin" / "python"
    if not python.exists():
        why = "make test-careamics installs what this needs"
        if os.environ.get("TEST_CAREAMICS"):
            pytest.fail(why)
        pytest.skip(why)
    return str(python)


def _open(folder: Path, at: str) -> "zarr.Array[Any] | None":
    store, inside = split(folder, at)
    try:
        return zarr.open_array(store.resolve(), path=inside, mode="r")
    except FileNotFoundError:
        return None


@pytest.fixture(scope="module")
def predictions(
    broker: RabbitMQ,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Predictions]:
    """Predictions to one consumer; at the end the table of what became of them."""
    _python("newer")
    folder = tmp_path_factory.mktemp("careamics")
    with running(broker, folder) as run:
        made = Predictions(run, folder)
        yield made
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("", *made.table(), sep="\n")


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_a_prediction_is_right_and_careamics_own_as_the_readme_says(
    predictions: Predictions, kind: str, case: Case
) -> None:
    outcome = predictions.outcome(kind, case)

    assert outcome.row[:2] == (case.theirs, RIGHT), (outcome.theirs_error, outcome.ours_error)
    assert all(wanted.any() for wanted in outcome.wanted)
    if case.theirs == RIGHT:
        for ours, theirs in zip(outcome.ours, outcome.theirs, strict=True):
            assert np.array_equal(_values(ours), _values(theirs))


def _values(array: "zarr.Array[Any] | None") -> Values:
    assert array is not None
    return np.asarray(array[:])


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_an_array_is_cut_as_its_source(predictions: Predictions, kind: str, case: Case) -> None:
    outcome = predictions.outcome(kind, case)

    for source, array in zip(case.sources, outcome.ours, strict=True):
        assert array is not None
        assert array.dtype == "float32"
        assert array.metadata.dimension_names == tuple(case.result_axes)  # type: ignore[union-attr]
        if source.is_zarr:
            assert array.chunks == _cut(case, source, source.chunks)
            assert array.shards == (source.shards and _cut(case, source, source.shards))


def _cut(case: Case, source: Source, sizes: Sequence[int] | None) -> tuple[int, ...]:
    found = dict(zip(case.axes, sizes or (), strict=True))
    if "T" in found and "T" not in case.result_axes:
        found["S"] *= found.pop("T")
    found["C"] = min(found.get("C", 1), case.channels[1])
    return tuple(found[axis] for axis in case.result_axes)


def test_the_readme_has_a_row_of_each_case() -> None:
    lines = (HERE / "README.md").read_text().splitlines()
    rows = [line.split(" | ")[:3] for line in lines if line.startswith("| ")][2:]

    cases = itertools.chain.from_iterable(SETS.values())
    assert rows == [[f"| {case.title}", case.theirs, RIGHT] for case in cases]
