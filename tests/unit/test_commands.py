"""The commands on ledgers: what they show, change and return, beside consumers at work."""

import dataclasses
import errno
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer import cli
from consumer.blocks import ArrayKey
from consumer.commands import missing, reset, status, wait
from consumer.commands.arguments import array_key
from consumer.commit import Commit
from consumer.contract import TileEntry
from consumer.coverage import Box
from consumer.errors import Fenced, UnsafePath, UnusableSettings
from consumer.ledger import Ledger
from consumer.ledger_files import load, read, read_present
from consumer.ledger_format import LEDGER_ID, Header, encode_header
from consumer.placement import stitched_box

ARRAY = ArrayKey("plate7/d.zarr", "g1/img")
NAME = "plate7/d.zarr/g1/img"
NOW_MS = 1795338000123


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("TILES_")]:
        monkeypatch.delenv(name)


SHAPE, FILE = [2, 40, 10], [2, 10, 5]
METADATA: dict[str, Any] = {
    "shape": SHAPE,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": FILE}},
}


def make_array(root: Path, array: ArrayKey, ledger_id: str) -> Path:
    """Have an array of that id be there; return its metadata file."""
    metadata = root / array.store / array.path / "zarr.json"
    metadata.parent.mkdir(parents=True, exist_ok=True)
    if not metadata.exists():
        metadata.write_text(json.dumps(METADATA | {"attributes": {LEDGER_ID: ledger_id}}))
    return metadata


@dataclass(frozen=True)
class Writer:
    """A consumer at work on one array of eight blocks."""

    root: Path
    array: ArrayKey = ARRAY
    axes: str = "CYX"

    def taken(self) -> Commit:
        """Take the store."""
        return Commit.take(self.root, self.array.store, file_mode=0o644, folder_mode=0o755)

    def round(self, *rows: int, change: Callable[[Ledger], None] = lambda _ledger: None) -> Commit:
        """Fill rows of blocks, and whatever else; return the commit."""
        commit = self.taken()
        fresh = Header("an-id", self.axes, (2, 40, 10), (2, 10, 5), (2, 10, 5), "a-ledger")
        ledger, _ = load(self.root, self.array, fresh, NOW_MS)
        for row in rows:
            for column in (0, 1):
                ledger.fill((0, row, column), [Box((0, 0, 0), (2, 10, 5))])
        change(ledger)
        make_array(self.root, self.array, fresh.id)
        commit.commit({}, ledger.dirty())
        return commit


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    """A consumer that has written nothing yet."""
    return Writer(tmp_path)


def run(writer: Writer, *arguments: str) -> int:
    """Run a command in this process."""
    return cli.main([*arguments, "--output-root", str(writer.root)])


# -- names and flags ----------------------------------------------------------------------------

COMMANDS = ["status", "missing", "wait", "reset"]


@pytest.mark.parametrize("name", ["doctor", *COMMANDS])
def test_the_help_has_a_purpose_and_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert re.search(rf"\nexample:\n  consumer {name} \S+", said)
    assert re.search(r"\n\n[A-Z][^\n]{20,}", said)


@pytest.mark.parametrize("name", ["run", "doctor", *COMMANDS])
def test_the_help_lists_the_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert f"\n  {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "array"),
    [
        (NAME, ARRAY),
        ("d.zarr/img", ArrayKey("d.zarr", "img")),
        ("a/b/d.zarr/g/h/img", ArrayKey("a/b/d.zarr", "g/h/img")),
    ],
)
def test_a_name_is_a_store_key_and_an_array_path(name: str, array: ArrayKey) -> None:
    assert array_key(name) == array


@pytest.mark.parametrize(
    "name",
    ["", "/d.zarr/img", "d.zarr", "d.zarr/", "img", "../d.zarr/img", "d.zarr/../x", "d.zarr/c"],
)
def test_a_name_that_no_message_could_have_is_refused(name: str) -> None:
    with pytest.raises(UnsafePath):
        array_key(name)


UNUSABLE: dict[str, tuple[list[str], str]] = {
    "no such command": (["stats"], "there is no command 'stats'"),
    "no array": (["missing"], "STORE/ARRAY; see consumer missing --help"),
    "unsafe name": (["reset", "../d.zarr/img"], "store key"),
    "unknown flag": (["status", "--all"], "--all; see consumer status --help"),
    "no root": (["status"], "output_root"),
    "a root that is none": (["status", "/nowhere/at/all"], "there is no folder /nowhere/at/all"),
    "a time that is none": (["wait", NAME, "--timeout", "nan"], "--timeout"),
    "a time before": (["wait", NAME, "--timeout", "-1"], "'-1' is no time in seconds"),
    "a word for a number": (["wait", NAME, "--allow-parked", "x"], "--allow-parked"),
    "a file that is none": (["status", "--config-file", "/nowhere"], "config_file"),
}


@pytest.mark.parametrize(("arguments", "said"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_used_ends_with_code_2_and_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("consumer: ")
    assert said in line


def test_the_root_may_come_from_the_environment(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round(0)
    monkeypatch.setenv("TILES_OUTPUT_ROOT", str(writer.root))
    assert cli.main(["status"]) == 0
    assert NAME in capsys.readouterr().out


def test_the_root_may_come_from_the_file(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round(0)
    file = writer.root / "consumer.toml"
    file.write_text(f'output_root = "{writer.root}"')
    assert cli.main(["status", "--config-file", str(file)]) == 0
    assert NAME in capsys.readouterr().out


def test_a_library_that_is_missing_is_named_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_name: str) -> Any:
        raise ModuleNotFoundError("No module named 'pydantic_settings'")

    monkeypatch.setattr(cli, "import_module", missing)
    assert cli.main(["status"]) == 2
    said = "No module named 'pydantic_settings'; install zarr-tile-consumer[service]"
    assert said in capsys.readouterr().err


# -- status -------------------------------------------------------------------------------------


def told(ledger: Ledger) -> None:
    """Say all that there is to say."""
    ledger.count(123, NOW_MS)
    ledger.count_parked(2)
    ledger.bind("file:///d.zarr", "unet-7")


def test_status_is_plain_text_where_it_is_no_terminal(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    Writer(writer.root, ArrayKey("p/d.zarr", "g/im")).round(0, 1, 2, change=told)
    Writer(writer.root, ArrayKey("a.zarr", "x")).round(*range(4))
    assert run(writer, "status") == 0
    assert (
        capsys.readouterr().out
        == """\
array          percent  tiles  missing blocks  parked  last write            run
a.zarr/x           100      0          0 of 8       0
p/d.zarr/g/im     75.0    123          2 of 8       2  2026-11-22 09:00:00Z  unet-7
"""
    )


def test_status_as_json_has_a_line_for_each_array(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round(0, 1, 2, change=told)
    assert run(writer, "status", "--json") == 0
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "store": "plate7/d.zarr",
        "array": "g1/img",
        "percent": 75.0,
        "complete": False,
        "announced": False,
        "tiles": 123,
        "parked": 2,
        "blocks": 8,
        "missing_blocks": 2,
        "written_ms": NOW_MS,
        "source": "file:///d.zarr",
        "run": "unet-7",
    }


def test_status_takes_the_root_as_its_argument(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round(0)
    assert cli.main(["status", str(writer.root)]) == 0
    assert NAME in capsys.readouterr().out


def test_almost_all_is_not_shown_as_100_percent() -> None:
    ledger = Ledger("x", Header("", "X", (10**6,), (10**5,), (10**5,), "l"))
    for block in range(10):
        ledger.fill((block,), [Box((0,), (10**5 - (block == 9),))])
    assert status.Row.of(ARRAY, ledger).cells[1] == "99.9"


def test_a_run_cannot_move_the_cursor(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    writer.round(0, change=lambda ledger: ledger.bind(None, "\x1b[2J\n[red]"))
    run(writer, "status")
    assert capsys.readouterr().out.splitlines()[1].endswith("\\x1b[2J\\n[red]")


def test_status_reports_damage_and_shows_the_rest(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round(0)
    other = Writer(writer.root, ArrayKey("a.zarr", "x"))
    other.round(0)
    (writer.root / ".tiles/a.zarr/ledger/x/.ledger.json").write_bytes(b"{}")
    assert run(writer, "status") == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["array", NAME]
    assert said.err.startswith("consumer: a.zarr/x: .ledger.json is damaged")


def watched(writer: Writer, *rounds: Callable[[], object]) -> int:
    """Watch, with one of `rounds` between looks, until an interrupt."""
    rest = iter(rounds)

    def sleep(_seconds: float) -> None:
        following = next(rest, None)
        if following is None:
            raise KeyboardInterrupt
        following()

    return status.main([str(writer.root), "--watch", "--json"], sleep)


def test_watching_shows_what_changes_until_it_is_interrupted(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watched(writer, lambda: writer.round(0), lambda: writer.round(1, 2, 3)) == 0
    shown = [json.loads(line)["percent"] for line in capsys.readouterr().out.splitlines()]
    assert shown == [25.0, 100.0]


def test_watching_reads_only_what_has_changed(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Writer(writer.root, ArrayKey("a.zarr", "x"))
    writer.round(0)
    other.round(0)
    reads: list[ArrayKey] = []

    def noted(root: Path, array: ArrayKey) -> Any:
        reads.append(array)
        return read_present(root, array)

    monkeypatch.setattr(status, "read_present", noted)
    watched(writer, lambda: None, lambda: other.round(1), lambda: None)
    assert reads == [other.array, ARRAY, other.array]


def test_status_is_a_table_on_a_terminal(writer: Writer) -> None:
    writer.round(0, change=told)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "consumer.cli", "status", str(writer.root)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b"")).decode()
        assert process.wait() == 0
    os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert re.search(rf"array +percent.*\n.*───.*\n *{NAME} +25.0 +123", plain)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the end, on a terminal
        return b""


def test_who_reads_only_the_beginning_gets_no_complaint(writer: Writer) -> None:
    writer.round(change=lambda ledger: None)
    command = [sys.executable, "-m", "consumer.cli", "missing", NAME]
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "TILES_OUTPUT_ROOT": str(writer.root)}
    ended = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(writing)
    assert ended.stderr == b""


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["--help"], ["topology", "show"], ["schema", "json"]], ids=str)
@pytest.mark.parametrize("full", [False, True], ids=["closed pipe", "full disk"])
def test_output_that_nobody_takes_is_no_traceback(
    words: list[str], unbuffered: str, full: bool
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") as disk:  # noqa: PTH123 - a device
        ended = subprocess.run(
            [sys.executable, "-m", "consumer.cli", *words],
            stdout=disk if full else writing,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
            text=True,
        )
    os.close(writing)
    assert ended.returncode == (2 if full else 1)
    assert ended.stderr.count("\n") == (1 if full else 0)


@pytest.mark.parametrize("words", ["--version", "topology show"])
def test_a_closed_output_is_no_traceback(words: str) -> None:
    command = f"exec {sys.executable} -m consumer.cli {words} >&-"
    ended = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("name", ["status", "missing", "wait", "verify", "reset"])
def test_a_disk_that_cannot_be_read_is_one_line_and_code_2(
    writer: Writer, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round()

    def fails(*_given: Any, **_named: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "ledger")

    monkeypatch.setattr(os, "scandir", fails)
    monkeypatch.setattr(os, "listdir", fails)
    assert run(writer, name, *([] if name == "status" else [NAME])) == 2
    assert capsys.readouterr().err == "consumer: [Errno 5] Input/output error: 'ledger'\n"


def test_a_password_after_a_misspelt_flag_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["parked", "list", "--pasword=hunter2"]) == 2
    said = capsys.readouterr().err
    assert "--pasword" in said
    assert "hunter2" not in said


def test_a_file_of_a_password_that_is_not_there_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (["parked", "list"], ["topology", "check"]):
        assert cli.main([*words, "--password-file", "/nowhere/password"]) == 2
        said = capsys.readouterr().err
        assert "/nowhere/password" in said
        assert said.count("\n") == 1


def test_an_image_of_no_bytes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("empty.npy", "cut.tif"):
        (tmp_path / name).write_bytes(b"II*\0" if name.endswith("tif") else b"")
        assert cli.main(["publish", str(tmp_path / name), "--store", "a.zarr"]) == 2
        assert f"{name} cannot be read: " in capsys.readouterr().err


def test_ctrl_c_ends_a_look_as_the_shell_expects(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_rows: status.Rows) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status.Rows, "read", interrupted)
    assert run(writer, "status") == cli.EXIT_CTRL_C


# -- missing ------------------------------------------------------------------------------------


def lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """Return the JSON lines that were written."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_what_is_missing_comes_as_entries_of_tiles(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round(0, 2)
    assert run(writer, "missing", NAME) == 0
    assert lines(capsys) == [
        {"channel": channel, "stitch_coords": [y, 0], "crop_size": [10, 10]}
        for y in (10, 30)
        for channel in (0, 1)
    ]


def test_nothing_is_missing_of_a_complete_array(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round(*range(4))
    assert run(writer, "missing", NAME) == 0
    assert lines(capsys) == []


def test_where_no_axes_are_known_boxes_have_start_and_stop(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    Writer(writer.root, axes="").round(0, 1, 2)
    assert run(writer, "missing", NAME) == 0
    assert lines(capsys) == [{"start": [0, 30, 0], "stop": [2, 40, 10]}]


@pytest.mark.parametrize("command", ["missing", "reset"])
def test_an_array_that_nothing_is_known_of_is_said(
    writer: Writer, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(writer, command, NAME) == 2
    assert f"nothing is known of {NAME}" in capsys.readouterr().err


@st.composite
def missing_boxes(draw: st.DrawFn) -> tuple[Header, Box]:
    """Draw an array and a box of it."""
    axes = "".join(draw(st.lists(st.sampled_from("STCZ"), unique=True).map(sorted_axes))) + "YX"
    shape = tuple(draw(st.integers(1, 4)) for _ in axes)
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    return Header("", axes, shape, shape, shape, "l"), Box(start, stop)


def sorted_axes(axes: list[str]) -> list[str]:
    """Return axes in the order of the contract."""
    return sorted(axes, key="STCZ".index)


@given(missing_boxes())
def test_the_entries_of_a_box_sent_with_a_fill_fill_just_it(drawn: tuple[Header, Box]) -> None:
    header, box = drawn
    times = np.zeros(header.shape, int)
    for entry in missing.entries(header, box):
        tile = TileEntry.model_validate_json(json.dumps(entry | {"fill": 0}))
        placed, _ = stitched_box(header.axes, header.shape, tile, None)
        times[placed.slices] += 1
    wanted = np.zeros(header.shape, int)
    wanted[box.slices] = 1
    np.testing.assert_array_equal(times, wanted)


# -- wait ---------------------------------------------------------------------------------------


class Clock:
    """A clock that goes on when somebody sleeps, and what happens meanwhile."""

    def __init__(self, *events: tuple[float, Callable[[], object]]) -> None:
        self.now = 1000.0
        self._events = sorted((1000.0 + at, i, event) for i, (at, event) in enumerate(events))

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        while self._events and self._events[0][0] <= self.now:
            self._events.pop(0)[2]()


def waited(writer: Writer, clock: Clock, *arguments: str) -> int:
    """Wait for the array."""
    given = [NAME, "--output-root", str(writer.root), "--timeout", "60", *arguments]
    return wait.main(given, clock, clock.sleep)


def park(ledger: Ledger) -> None:
    """Take note of a parked tile."""
    ledger.count_parked(1)


def test_a_complete_array_is_not_waited_for(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round(*range(4))
    clock = Clock()
    assert waited(writer, clock) == 0
    assert clock.now == 1000
    assert capsys.readouterr().out == f"{NAME}: complete\n"


def test_an_array_is_waited_for_until_it_is_complete(writer: Writer) -> None:
    clock = Clock((5, lambda: writer.round(0)), (30, lambda: writer.round(1, 2, 3)))
    assert waited(writer, clock) == 0
    assert clock.now == 1030


def test_waiting_ends_when_the_time_is_up(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock((5, lambda: writer.round(0)))
    assert waited(writer, clock) == 1
    assert clock.now == 1060
    said = f"{NAME}: 25.000 % written, 6 of 8 blocks missing, parked tiles: 0\n"
    assert capsys.readouterr().out == said


def test_an_array_that_never_came_is_waited_for_in_vain(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert waited(writer, Clock()) == 1
    assert "nothing is known of it yet" in capsys.readouterr().out


def test_without_a_time_a_look_is_enough_to_tell(writer: Writer) -> None:
    clock = Clock()
    assert waited(writer, clock, "--timeout", "0") == 1
    assert clock.now == 1000


def test_who_waits_is_told_of_a_damaged_ledger(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round()
    for path in writer.root.rglob("*.json"):
        if ".tiles" in path.parts:
            path.write_bytes(b"{")
    assert run(writer, "wait", NAME, "--timeout", "0") == 1
    assert "damaged" in capsys.readouterr().err


def test_no_look_is_an_eternity_away(writer: Writer) -> None:
    assert run(writer, "wait", NAME, "--interval", "inf") == 2


def test_parked_tiles_end_the_waiting(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock((5, lambda: writer.round(0, change=park)))
    assert waited(writer, clock) == 3
    assert clock.now == 1005
    assert "parked tiles: 1" in capsys.readouterr().out


def test_parked_tiles_do_not_matter_once_the_array_is_complete(writer: Writer) -> None:
    writer.round(*range(4), change=park)
    assert waited(writer, Clock()) == 0


def test_so_many_parked_tiles_may_be_allowed(writer: Writer) -> None:
    writer.round(0, change=park)
    clock = Clock((5, lambda: writer.round(1, 2, 3)))
    assert waited(writer, clock, "--allow-parked", "1") == 0


def test_a_last_segment_that_comes_after_its_header_is_seen(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.round(0)
    folder = writer.root / ".tiles" / ARRAY.store / "ledger" / ARRAY.path
    before = (folder / ".blocks-00000.json").read_bytes()
    writer.round(1, 2, 3)
    after = (folder / ".blocks-00000.json").read_bytes()
    (folder / ".blocks-00000.json").write_bytes(before)
    clock = Clock((5, lambda: (folder / ".blocks-00000.json").write_bytes(after)))
    assert waited(writer, clock) == 0
    assert clock.now == 1005


# -- arrays that are gone -----------------------------------------------------------------------


def replaced(writer: Writer) -> None:
    """Have another array under the name."""
    folder = writer.root / writer.array.store
    shutil.rmtree(folder)
    make_array(writer.root, writer.array, "another-id")


def removed(writer: Writer) -> None:
    """Remove the store."""
    shutil.rmtree(writer.root / writer.array.store)


GONE = pytest.mark.parametrize("gone", [removed, replaced])
SAID = f"consumer: {NAME} was removed or replaced since: what was written is missing\n"


@GONE
def test_status_counts_an_array_that_is_gone_as_empty(
    writer: Writer, gone: Callable[[Writer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round(*range(4))
    assert watched(writer, lambda: gone(writer)) == 0
    said = capsys.readouterr()
    shown = [json.loads(line) for line in said.out.splitlines()]
    assert [(row["percent"], row["complete"], row["tiles"]) for row in shown] == [
        (100.0, True, 0),
        (0.0, False, 0),
    ]
    assert said.err == SAID


@GONE
def test_all_of_an_array_that_is_gone_is_missing(
    writer: Writer, gone: Callable[[Writer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    writer.round(*range(4))
    gone(writer)
    assert run(writer, "missing", NAME) == 0
    said = capsys.readouterr()
    boxes = [json.loads(line) for line in said.out.splitlines()]
    assert sum(box["crop_size"][0] * box["crop_size"][1] for box in boxes) == 2 * 40 * 10
    assert said.err == SAID


@GONE
def test_an_array_that_is_gone_is_waited_for(
    writer: Writer, gone: Callable[[Writer], None]
) -> None:
    writer.round(*range(4))
    gone(writer)
    clock = Clock((5, lambda: make_again(writer)))
    assert waited(writer, clock) == 0
    assert clock.now == 1005


def make_again(writer: Writer) -> None:
    """Have an array made again, and filled."""
    shutil.rmtree(writer.root / writer.array.store, ignore_errors=True)
    writer.round(*range(4))


@pytest.mark.parametrize("attributes", [None, b"{}", b"no JSON", b"[]"])
def test_an_array_of_format_2_without_an_id_is_there_as_long_as_its_metadata_are(
    writer: Writer, attributes: bytes | None
) -> None:
    writer.round(*range(4))
    header = ledger_of(writer).header
    folder = writer.root / ARRAY.store / ARRAY.path
    (folder / "zarr.json").unlink()
    (folder / ".zarray").write_text(json.dumps({"shape": SHAPE, "chunks": FILE}))
    if attributes is not None:
        (folder / ".zattrs").write_bytes(attributes)
    ledger = writer.root / ".tiles" / ARRAY.store / "ledger" / ARRAY.path / ".ledger.json"
    ledger.write_bytes(encode_header(dataclasses.replace(header, id="")))
    assert waited(writer, Clock(), "--timeout", "0") == 0
    (folder / ".zarray").unlink()
    assert waited(writer, Clock(), "--timeout", "0") == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": [2, 40, 11]},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 10, 10]}}},
        {"chunk_grid": {}},
        {"chunk_grid": None, "shape": None},
    ],
    ids=str,
)
def test_an_array_without_an_id_that_was_made_anew_with_another_shape_is_waited_for(
    writer: Writer, changed: dict[str, Any]
) -> None:
    writer.round(*range(4))
    ledger = writer.root / ".tiles" / ARRAY.store / "ledger" / ARRAY.path / ".ledger.json"
    header = ledger_of(writer).header
    ledger.write_bytes(encode_header(dataclasses.replace(header, id="")))
    metadata = writer.root / ARRAY.store / ARRAY.path / "zarr.json"
    metadata.write_text(json.dumps(METADATA))
    assert waited(writer, Clock(), "--timeout", "0") == 0
    metadata.write_text(json.dumps(METADATA | changed))
    assert waited(writer, Clock(), "--timeout", "0") == 1


def test_an_array_that_cannot_be_looked_at_does_not_hide_the_others(
    writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Writer(writer.root, ArrayKey("z.zarr", "x"))
    for each in (writer, other):
        each.round(*range(4))
    metadata = writer.root / ARRAY.store / ARRAY.path / "zarr.json"
    metadata.unlink()
    metadata.mkdir()
    assert cli.main(["status", str(writer.root), "--json"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["percent"] for line in said.out.splitlines()] == [100.0, 100.0]
    assert said.err.startswith(f"consumer: {NAME}: whether it is still there cannot be seen: ")
    assert "Is a directory" in said.err


# -- reset --------------------------------------------------------------------------------------


def ledger_of(writer: Writer) -> Ledger:
    """Return the ledger as it is stored."""
    ledger, damages = read(writer.root, writer.array)
    assert ledger is not None
    assert not damages
    return ledger


def test_a_reset_empties_the_ledger(writer: Writer, capsys: pytest.CaptureFixture[str]) -> None:
    writer.round(0, 1, 2, change=told)
    writer.round(change=Ledger.announce)
    assert run(writer, "reset", NAME) == 0
    assert capsys.readouterr().out == f"{NAME}: was 75.000 % written, counts as empty now\n"
    ledger = ledger_of(writer)
    header = ledger.header
    assert ledger.percent == 0
    assert (header.source, header.run, header.tiles, header.parked) == (None, None, 0, 0)
    assert not header.announced


def test_a_reset_keeps_what_tells_the_array(writer: Writer) -> None:
    writer.round(0)
    before = ledger_of(writer).header
    run(writer, "reset", NAME)
    after = ledger_of(writer).header
    assert after.same_array(before)
    assert (after.axes, after.ledger != before.ledger) == (before.axes, True)


def test_a_reset_leaves_no_segment(writer: Writer) -> None:
    writer.round(0)
    run(writer, "reset", NAME)
    folder = writer.root / ".tiles" / ARRAY.store / "ledger" / ARRAY.path
    assert [path.name for path in folder.iterdir()] == [".ledger.json"]


def test_a_reset_fences_the_consumer_at_work_which_takes_again_and_finds_it_empty(
    writer: Writer,
) -> None:
    at_work = writer.round(0, 1)
    run(writer, "reset", NAME)
    with pytest.raises(Fenced):
        at_work.commit({"g1/img/c/0": [b"late"]})
    writer.round(2)
    assert ledger_of(writer).percent == 25


def test_a_reset_releases_the_store(writer: Writer) -> None:
    writer.round(0)
    run(writer, "reset", NAME)
    assert [path.name for path in (writer.root / ".tiles" / ARRAY.store).iterdir()] == ["ledger"]


@pytest.mark.parametrize("name", [".ledger.json", ".blocks-00000.json"])
def test_a_reset_mends_a_damaged_ledger(writer: Writer, name: str) -> None:
    writer.round(0)
    folder = writer.root / ".tiles" / ARRAY.store / "ledger" / ARRAY.path
    (folder / name).write_bytes(b"{}")
    assert run(writer, "reset", NAME) == 0
    assert read(writer.root, ARRAY)[1] == []
    writer.round(1)
    assert ledger_of(writer).percent == 25


def test_a_reset_of_an_array_that_nothing_is_known_of_leaves_consumers_alone(
    writer: Writer,
) -> None:
    at_work = writer.taken()
    assert run(writer, "reset", NAME) == 2
    at_work.check()


@pytest.fixture
def contested(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have others take stores at the same time, as often as the list says."""
    left, real = [0], Commit.take

    def take(*args: Any, **options: Any) -> Commit:
        if left[0]:
            left[0] -= 1
            raise Fenced("another consumer takes it at the same time")
        return real(*args, **options)

    monkeypatch.setattr(Commit, "take", take)
    return left


def test_a_reset_takes_again_where_another_takes_at_the_same_time(
    writer: Writer, contested: list[int]
) -> None:
    writer.round(0)
    contested[0] = 4
    slept: list[float] = []
    assert reset.main([NAME, "--output-root", str(writer.root)], slept.append) == 0
    assert len(slept) == 4
    assert all(0.1 <= wait <= 0.1 * 2**i for i, wait in enumerate(slept))
    assert ledger_of(writer).percent == 0


def test_a_reset_that_never_gets_the_store_fails(
    writer: Writer,
    contested: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    writer.round(0)
    contested[0] = 1000
    monkeypatch.setattr(reset, "_FIRST_WAIT_S", 0)
    assert run(writer, "reset", NAME) == 1
    assert "another consumer takes it at the same time; try again" in capsys.readouterr().err


def test_a_reset_needs_no_voxels(writer: Writer) -> None:
    writer.round(0)
    shutil.rmtree(writer.root / "plate7")
    run(writer, "reset", NAME)
    assert not (writer.root / "plate7").exists()


def test_unusable_settings_are_errors_of_the_consumer(writer: Writer) -> None:
    with pytest.raises(UnusableSettings):
        status.main(["--nonsense"])


@pytest.mark.parametrize(
    "words",
    [["--chunks", "0,0"], ["--shards", "6,6", "--chunks", "4,4"], ["--max-message-bytes", "100"]],
    ids=str,
)
def test_an_image_that_no_message_can_carry_is_code_2(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((8, 8), "float32"))
    assert cli.main(["publish", str(tmp_path / "a.npy"), "--store", "a.zarr", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1
