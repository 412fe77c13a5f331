"""`consumer verify`: what is lost of what the ledger says is filled is told, and nothing else."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zarr
from zarr.codecs import Crc32cCodec, ShardingCodec

from consumer import cli
from consumer.arrays import ReadableArray, open_array, open_store, read_array
from consumer.blocks import ArrayKey
from consumer.commands.missing import entries
from consumer.contract import ArrayEntry
from consumer.coverage import Box, Coverage
from consumer.errors import DamagedBlock
from consumer.ledger_files import load, read
from consumer.ledger_format import Header
from consumer.verification import Checked, Verification
from harness import voxels

KEY = ArrayKey("plate7/d.zarr", "g1/img")
NAME = "plate7/d.zarr/g1/img"
SHAPE = (2, 300, 150)
WHOLE = Box.of_shape(SHAPE)

KINDS: dict[str, dict[str, Any]] = {
    "chunks": {"chunks": (1, 100, 100)},
    "one chunk beyond the array": {"chunks": (4, 512, 512)},
    "shards": {"chunks": (1, 50, 50), "shards": (1, 100, 100)},
    "shards with their index first": {
        "chunks": (2, 100, 100),
        "compressors": None,
        "serializer": ShardingCodec(chunk_shape=(1, 50, 50), index_location="start"),
    },
    "checksums": {"chunks": (1, 100, 100), "compressors": [Crc32cCodec()]},
    "format 2": {"chunks": (1, 100, 100), "zarr_format": 2, "dimension_names": None},
}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("TILES_")]:
        monkeypatch.delenv(name)


@dataclass
class Stored:
    """An array made by plain zarr, and a consumer that writes to it."""

    root: Path
    options: dict[str, Any] = field(default_factory=lambda: KINDS["chunks"])

    def __post_init__(self) -> None:
        wanted = {"shape": SHAPE, "dtype": "float32", "dimension_names": ["c", "y", "x"]}
        zarr.create_group(self.root / KEY.store, zarr_format=self.options.get("zarr_format", 3))
        zarr.create_array(self.root / KEY.store, name=KEY.path, **wanted | self.options)

    @property
    def folder(self) -> Path:
        """Where the array is stored."""
        return self.root / KEY.store / KEY.path

    def write(self, *boxes: Box, zeros: Sequence[Box] = (), empty_chunks: bool = True) -> "Stored":
        """Fill boxes as a consumer does: blocks, then the ledger."""
        image = voxels(SHAPE)
        for box in zeros:
            image[box.slices] = 0
        store = open_store(self.root, KEY.store, file_mode=0o644, folder_mode=0o755)
        said = ArrayEntry.model_validate(
            {"store": KEY.store, "array": KEY.path, "axes": "CYX", "shape": SHAPE}
        )
        array = open_array(store, said, write_empty_chunks=empty_chunks, max_block_bytes=1 << 30)
        fresh = Header.of(array.layout, array.ledger_id, "CYX", "a-ledger")
        ledger, _ = load(self.root, KEY, fresh, 0)
        for box in boxes:
            for piece in array.layout.grid.pieces(box):
                block = array.layout.grid.box(piece.block)
                buffer = array.read(block)
                buffer[piece.inside.slices] = image[block.slices][piece.inside.slices]
                store.commit.commit(array.encoder.encode(block, buffer, [piece.inside]))
                ledger.fill(piece.block, [piece.inside])
        store.commit.commit({}, ledger.dirty())
        store.commit.release()
        return self

    def files(self) -> list[Path]:
        """Return the array's chunks or shards."""
        names = {"zarr.json", ".zarray", ".zattrs"}
        return sorted(p for p in self.folder.rglob("*") if p.is_file() and p.name not in names)

    def file(self, *number: int) -> Path:
        """Return where a chunk or shard is stored."""
        array = read_array(self.root, KEY)
        assert array is not None
        return array.file(number)

    def verify(self, *arguments: str) -> int:
        """Run the command in this process."""
        return cli.main(["verify", NAME, "--output-root", str(self.root), *arguments])


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Stored:
    """An array of each kind."""
    return Stored(tmp_path, request.param)


@pytest.fixture
def chunks(tmp_path: Path) -> Stored:
    """An array without shards, all of it written."""
    return Stored(tmp_path).write(WHOLE)


def damages(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return what was told of each file, and in the end."""
    *files, last = map(json.loads, capsys.readouterr().out.splitlines())
    return files, last


def lost(found: list[dict[str, Any]]) -> Coverage:
    """Return the boxes of the array that are to be predicted again."""
    tiles = [tile for each in found for tile in each["tiles"]]
    starts = [(tile["channel"], *tile["stitch_coords"]) for tile in tiles]
    sizes = [(1, *tile["crop_size"]) for tile in tiles]
    return Coverage(
        Box(start, tuple(a + n for a, n in zip(start, size, strict=True)))
        for start, size in zip(starts, sizes, strict=True)
    )


# -- whole --------------------------------------------------------------------------------------


def test_what_is_whole_and_complete_is_told_as_such(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    stored.write(WHOLE)

    assert stored.verify() == 0

    files = stored.files()
    size = sum(file.stat().st_size for file in files)
    told = capsys.readouterr()
    expected = rf"{NAME}: no damage; complete; {len(files)} files, {size} bytes, \d+\.\d s\n"
    assert re.fullmatch(expected, told.out)
    assert told.err == ""


def test_what_was_never_written_is_no_damage(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    stored.write(Box((0, 0, 0), (1, 110, 150)))

    assert stored.verify() == 0

    assert "no damage; not complete, 18.333 % written; " in capsys.readouterr().out


def test_nothing_written_is_nothing_damaged(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    stored.write()

    assert stored.verify("--json") == 0

    found, last = damages(capsys)
    assert (found, last["files"], last["percent"]) == ([], 0, 0)


def test_in_the_end_there_is_a_line_of_json(
    chunks: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chunks.verify("--json", "--threads", "3") == 0

    [], last = damages(capsys)
    assert last.pop("seconds") > 0
    assert last == {
        "store": KEY.store,
        "array": KEY.path,
        "complete": True,
        "percent": 100.0,
        "damaged": 0,
        "files": 12,
        "bytes": sum(file.stat().st_size for file in chunks.files()),
    }


# -- damaged ------------------------------------------------------------------------------------


def a_folder(path: Path) -> None:
    """Put a folder in a file's place."""
    path.unlink()
    path.mkdir()


def a_link(path: Path) -> None:
    """Put a link to it in a file's place."""
    path.rename(path.with_name("x"))
    path.symlink_to("x")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "missing"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be decoded"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 5), ""),
    "overwritten": (lambda path: path.write_bytes(b"\0" * 100), "cannot be decoded"),
    "a folder": (a_folder, "is no regular file"),
    "a link": (a_link, "is no regular file"),
}


@pytest.mark.parametrize(("damage", "wrong"), DAMAGES.values(), ids=DAMAGES)
def test_each_damaged_file_is_told_and_what_is_lost_with_it(
    stored: Stored,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    wrong: str,
) -> None:
    stored.write(Box((0, 0, 0), (2, 300, 150)))
    last_file = stored.files()[-1]
    damage(last_file)

    assert stored.verify("--json") == 1

    [found], last = damages(capsys)
    assert found["file"] == str(last_file.relative_to(stored.root))
    assert wrong in found["wrong"]
    assert last["damaged"] == 1
    array = read_array(stored.root, KEY)
    assert array is not None
    grid = array.layout.grid
    [box] = [grid.file_box(n) for n in grid.files(WHOLE) if array.file(n) == last_file]
    missing = lost([found])
    assert missing.voxels > 0
    # Of a shard that was cut it may be one chunk only.
    assert all(each.intersection(box) == each for each in missing)
    if found["wrong"] == "missing":
        assert missing.voxels == box.volume


def test_boxes_to_be_predicted_again_are_those_that_were_filled(
    chunks: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    partly = Stored(tmp_path / "partly").write(Box((0, 10, 20), (2, 130, 110)))
    partly.file(1, 0, 0).unlink()
    partly.file(1, 1, 1).unlink()

    assert partly.verify() == 1

    lines = capsys.readouterr().out.splitlines()
    header = Header("", "CYX", SHAPE, (1, 100, 100), SHAPE, "")
    boxes = [Box((1, 10, 20), (2, 100, 100)), Box((1, 100, 100), (2, 130, 110))]
    assert lines[:-1] == [
        f"{NAME}/c/1/0/0: missing",
        f"{NAME}/c/1/1/1: missing",
        *(json.dumps(entry) for box in boxes for entry in entries(header, box)),
    ]
    assert lines[-1].startswith(f"{NAME}: damaged files: 2; not complete, 24.000 % written; 8 ")


def test_neighbours_that_are_lost_become_one_box(
    chunks: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(chunks.folder / "c/0/1")
    shutil.rmtree(chunks.folder / "c/0/2")

    assert chunks.verify() == 1

    lines = capsys.readouterr().out.splitlines()
    boxes = [json.loads(line) for line in lines if line.startswith("{")]
    assert boxes == [{"channel": 0, "stitch_coords": [100, 0], "crop_size": [200, 150]}]


def test_what_to_do_is_told_apart_from_what_was_found(
    chunks: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    chunks.file(0, 0, 0).unlink()
    chunks.verify()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("consumer: remove or restore what cannot be decoded, then publish the")


def test_a_shard_that_lacks_a_chunk_is_damaged_and_only_that_chunk_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = Stored(tmp_path, KINDS["shards"]).write(WHOLE)
    other = Stored(tmp_path / "other", KINDS["shards"])
    other.write(WHOLE, zeros=[Box((0, 50, 0), (1, 100, 50))], empty_chunks=False)
    shutil.copy(other.file(0, 0, 0), stored.file(0, 0, 0))

    assert stored.verify("--json") == 1

    [found], _ = damages(capsys)
    assert found == {
        "file": f"{NAME}/c/0/0/0",
        "wrong": "lacks 1 of the chunks that were written to it",
        "tiles": [{"channel": 0, "stitch_coords": [50, 0], "crop_size": [50, 50]}],
    }


def test_a_chunk_beyond_the_end_of_a_shard_at_the_edge_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # zarr reads such a shard chunk by chunk, and takes one that is not there for empty.
    stored = Stored(tmp_path, KINDS["shards with their index first"]).write(WHOLE)
    shard = stored.file(0, 0, 1)
    chunk = 50 * 50 * 4
    os.truncate(shard, shard.stat().st_size - chunk)

    assert stored.verify("--json") == 1

    [found], _ = damages(capsys)
    # Later releases of zarr refuse all of the shard.
    assert lost([found]).voxels >= chunk // 4


def test_a_link_among_the_folders_is_told(
    chunks: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    (chunks.folder / "c/0").rename(chunks.folder / "c/elsewhere")
    (chunks.folder / "c/0").symlink_to("elsewhere")

    assert chunks.verify("--json") == 1

    found, _ = damages(capsys)
    assert {each["wrong"].rpartition("; ")[2] for each in found} == {
        "links below the output root are refused)"
    }


def test_a_file_that_the_disk_cannot_read_is_told(
    chunks: Stored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise OSError(5, "Input/output error", "c/0")

    monkeypatch.setattr(ReadableArray, "read", fails)

    assert chunks.verify() == 1
    assert "c/0/0/0: cannot be read ([Errno 5] Input/output error: 'c/0')" in (
        capsys.readouterr().out
    )


def test_words_of_others_cannot_move_the_cursor(
    chunks: Stored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise DamagedBlock("x") from ValueError("\x1b[2J")

    monkeypatch.setattr(ReadableArray, "read", fails)
    chunks.verify()
    assert "(ValueError: \\x1b[2J)" in capsys.readouterr().out


# -- empty chunks -------------------------------------------------------------------------------


@pytest.fixture(params=["chunks", "shards"])
def sparse(request: pytest.FixtureRequest, tmp_path: Path) -> Stored:
    """An array whose empty chunks are not stored."""
    zeros = [Box((0, 0, 0), (1, 150, 150)), Box((1, 200, 0), (2, 300, 100))]
    return Stored(tmp_path, KINDS[request.param]).write(WHOLE, zeros=zeros, empty_chunks=False)


def test_an_absent_chunk_is_missing_where_empty_ones_are_stored(sparse: Stored) -> None:
    assert sparse.verify() == 1


@pytest.mark.parametrize("how", ["environment", "flag"])
def test_an_absent_chunk_is_empty_where_empty_ones_are_not_stored(
    sparse: Stored, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv("TILES_WRITE_EMPTY_CHUNKS", "false")
        assert sparse.verify() == 0
    else:
        assert sparse.verify("--no-write-empty-chunks") == 0


def test_what_cannot_be_decoded_is_damage_there_too(
    sparse: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse.files()[0].write_bytes(b"damaged")

    assert sparse.verify("--no-write-empty-chunks", "--json") == 1

    found, last = damages(capsys)
    assert len(found) == 1
    assert last["files"] == len(sparse.files())


# -- beside consumers ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chunks", "shards"])
@pytest.mark.parametrize("failures", [1, 2])
def test_a_file_that_was_replaced_while_it_was_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, failures: int
) -> None:
    stored = Stored(tmp_path, KINDS[kind]).write(WHOLE)
    file = stored.file(1, 1, 0)
    good, reads, real = file.read_bytes(), [0], ReadableArray.read
    file.write_bytes(b"damaged")

    def replaced_meanwhile(array: ReadableArray, box: Box) -> Any:
        try:
            return real(array, box)
        except DamagedBlock:
            reads[0] += 1
            if reads[0] == failures:
                new = file.with_name("new")
                new.write_bytes(good)
                new.rename(file)
            raise

    monkeypatch.setattr(ReadableArray, "read", replaced_meanwhile)

    assert stored.verify() == 0
    assert reads == [failures]


def test_a_ledger_that_advances_meanwhile_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, real = Stored(tmp_path).write(Box((0, 0, 0), (1, 100, 150))), ReadableArray.read
    rest = [WHOLE]

    def written_meanwhile(array: ReadableArray, box: Box) -> Any:
        found = real(array, box)
        if rest:
            stored.write(rest.pop())
        return found

    monkeypatch.setattr(ReadableArray, "read", written_meanwhile)

    assert stored.verify() == 0
    assert "not complete, 16.667 % written" in capsys.readouterr().out


def test_an_array_that_was_replaced_meanwhile_is_told(
    chunks: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def removed_meanwhile(_array: ReadableArray, _box: Box) -> Any:
        shutil.rmtree(chunks.folder, ignore_errors=True)

    monkeypatch.setattr(ReadableArray, "read", removed_meanwhile)

    assert chunks.verify() == 2
    assert f"{NAME} was removed or replaced meanwhile; verify it again" in capsys.readouterr().err


def test_verifying_changes_nothing_and_fences_nobody(chunks: Stored) -> None:
    at_work = open_store(chunks.root, KEY.store, file_mode=0o644, folder_mode=0o755)
    before = {path: path.stat().st_mtime_ns for path in chunks.root.rglob("*")}

    assert chunks.verify() == 0

    assert {path: path.stat().st_mtime_ns for path in chunks.root.rglob("*")} == before
    at_work.commit.check()


# -- no such array or ledger --------------------------------------------------------------------


def no_array(stored: Stored) -> None:
    """Remove the store and all that is known of it."""
    shutil.rmtree(stored.root / KEY.store)
    shutil.rmtree(stored.root / ".tiles")


def no_ledger(stored: Stored) -> None:
    """Remove what is known of the store."""
    shutil.rmtree(stored.root / ".tiles")


def removed(stored: Stored) -> None:
    """Remove the store."""
    shutil.rmtree(stored.root / KEY.store)


def replaced(stored: Stored) -> None:
    """Replace the store by another."""
    removed(stored)
    Stored(stored.root, KINDS["shards"])


def a_group(stored: Stored) -> None:
    """Put a group in the array's place."""
    shutil.rmtree(stored.folder)
    zarr.create_group(stored.folder)


UNUSABLE: dict[str, tuple[Callable[[Stored], object], int, str]] = {
    "no array": (
        no_array,
        2,
        f"there is no array {NAME} below ROOT; restore it, or publish its tiles again",
    ),
    "array removed": (
        removed,
        2,
        f"there is no array {NAME} below ROOT, though its ledger says that 100.000 % are written; "
        "restore it, or publish its tiles again",
    ),
    "no ledger": (
        no_ledger,
        2,
        f"{NAME} exists, but there is no ledger in ROOT/.tiles/plate7/d.zarr/ledger/g1/img: "
        "nothing tells what of it must be there; restore the ledger, or publish its tiles again, "
        "which makes a new one",
    ),
    "array replaced": (
        replaced,
        2,
        f"the ledger of {NAME} is of another array that had this name, and nothing tells what of "
        "this one must be there; restore the two together, or publish its tiles again",
    ),
    "a group": (a_group, 1, f"{NAME}: an array is wanted, a group is stored"),
    "damaged header": (
        lambda stored: ledger_file(stored, ".ledger.json").write_bytes(b"{}"),
        1,
        f"{NAME}: .ledger.json is damaged: it does not begin with a checksum: nothing tells what "
        "of it must be there; restore the ledger, or publish its tiles again, which makes a new "
        "one",
    ),
}


def ledger_file(stored: Stored, name: str) -> Path:
    """Return a file of the ledger."""
    return stored.root / ".tiles" / KEY.store / "ledger" / KEY.path / name


@pytest.mark.parametrize(("change", "code", "line"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_verified_is_told_in_one_line(
    chunks: Stored,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Stored], object],
    code: int,
    line: str,
) -> None:
    change(chunks)

    assert chunks.verify() == code

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"consumer: {line.replace('ROOT', str(chunks.root))}\n"


def test_a_damaged_segment_of_the_ledger_is_damage(
    chunks: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger_file(chunks, ".blocks-00000.json").write_bytes(b"{}")

    assert chunks.verify("--json") == 1

    [found], last = damages(capsys)
    assert found["file"] == ".tiles/plate7/d.zarr/ledger/g1/img"
    assert ".blocks-00000.json is damaged" in found["wrong"]
    assert last["percent"] == 0


def test_no_threads_are_refused(chunks: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    assert chunks.verify("--threads", "0") == 2
    assert capsys.readouterr().err == (
        "consumer: argument --threads: '0' is below 1; see consumer verify --help\n"
    )


# -- threads and memory -------------------------------------------------------------------------


class Watched(Verification):
    """Notes how many blocks are read at a time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.most = self.now = 0
        self.lock = threading.Lock()

    def check(self, block: Box, filled: Coverage) -> Checked:
        """Read a block's files."""
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return super().check(block, filled)
        finally:
            with self.lock:
                self.now -= 1


def watched(root: Path) -> Watched:
    """Return what reads the array."""
    array, (ledger, _) = read_array(root, KEY), read(root, KEY)
    assert array is not None
    assert ledger is not None
    return Watched(array, ledger, empty_chunks=True)


def test_blocks_are_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(tmp_path, KINDS["shards"]).write(WHOLE)
    verification, together = watched(stored.root), threading.Barrier(3, timeout=60)
    real = ReadableArray.read

    def waits(array: ReadableArray, box: Box) -> Any:
        together.wait()
        return real(array, box)

    monkeypatch.setattr(ReadableArray, "read", waits)
    assert sum(checked.files for checked in verification.run(3, 1 << 30)) == 12
    assert verification.most == 3


@pytest.mark.parametrize(("block_copies", "most"), [(0, 1), (3, 1), (6, 2)])
def test_no_more_are_read_at_a_time_than_the_memory_takes(
    tmp_path: Path, block_copies: int, most: int
) -> None:
    stored = Stored(tmp_path, KINDS["shards"]).write(WHOLE)
    verification = watched(stored.root)
    memory = block_copies * 100 * 100 * 4
    assert len(list(verification.run(8, memory))) == 12
    assert verification.most <= most


def test_the_list_of_blocks_is_read_as_they_are(tmp_path: Path) -> None:
    stored = Stored(tmp_path, KINDS["shards"]).write(WHOLE)
    verification, taken = watched(stored.root), [0]
    blocks = list(verification._ledger.filled())

    def counted() -> Iterator[tuple[Box, Coverage]]:
        for block in blocks * 100:
            taken[0] += 1
            yield block

    verification._ledger.filled = counted  # type: ignore[method-assign]
    for done, _ in enumerate(verification.run(2, 1 << 30)):
        assert taken[0] <= done + 6


# -- on a terminal ------------------------------------------------------------------------------


@pytest.mark.parametrize("piped", [True, False], ids=["to a pipe", "to the terminal"])
def test_on_a_terminal_there_is_a_bar_and_no_line_is_lost(chunks: Stored, piped: bool) -> None:
    chunks.file(0, 0, 0).unlink()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "consumer.cli", "verify", NAME]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    environment["TILES_OUTPUT_ROOT"] = str(chunks.root)
    out = subprocess.PIPE if piped else theirs
    with subprocess.Popen(command, stdout=out, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b"")).decode()
        told = process.stdout.read().decode() if process.stdout else shown
        assert process.wait() == 1
    os.close(ours)
    assert "reading" in shown
    assert "100%" in shown
    assert f"{NAME}/c/0/0/0: missing" in told
    assert '{"channel": 0, "stitch_coords": [0, 0], "crop_size": [100, 100]}' in told


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the end, on a terminal
        return b""
