"""The ledger knows exactly what was filled by rounds that were saved, and in few bytes."""

import json
import math
import timeit
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.coverage import Box
from consumer.ledger import Files, Ledger, is_new_run
from consumer.ledger_format import (
    HEADER_NAME,
    Damaged,
    Header,
    Segment,
    decode_header,
    decode_segment,
    encode_header,
    encode_segment,
    segment_name,
    segment_number,
)
from consumer.placement import BlockIndex, Layout
from consumer.runs import Numbering, joined

PATH = "g1/img"


def header(shape: tuple[int, ...], block: tuple[int, ...], **known: Any) -> Header:
    """Return the header of an array."""
    axes = "STCZYX"[-len(shape) :]
    return Header("an-id", axes, shape, block, block, "a-ledger", **known)


def whole(ledger: Ledger, block: BlockIndex) -> list[Box]:
    """Return the box that fills a block."""
    return [Box.of_shape(ledger.header.grid.box(block).shape)]


class Disk:
    """The files of a ledger, as commits leave them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def commit(self, files: Files) -> None:
        """Write and remove files."""
        for name, parts in files.items():
            if parts is None:
                self.files.pop(name, None)
            else:
                self.files[name] = b"".join(parts)

    def load(self) -> Ledger:
        """Return the ledger that the files hold."""
        found = decode_header(self.files[f"{PATH}/{HEADER_NAME}"])
        segments = {}
        for name, content in self.files.items():
            number = segment_number(name.rpartition("/")[2])
            if number is not None:
                segment = decode_segment(content, number, found.ledger)
                assert segment is not None
                segments[number] = segment
        return Ledger(PATH, found, segments, stored=True)


# -- what it knows ------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[Header, list[tuple[str, BlockIndex, list[Box]]]]:
    """Draw an array, and fills of its blocks with what becomes of each round."""
    ndim = draw(st.integers(1, 4))
    block = tuple(draw(st.lists(st.integers(1, 4), min_size=ndim, max_size=ndim)))
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=ndim, max_size=ndim)))
    counts = [-(-n // b) for n, b in zip(shape, block, strict=True)]
    made = header(shape, block)
    rounds = []
    for _ in range(draw(st.integers(0, 12))):
        index = tuple(draw(st.integers(0, n - 1)) for n in counts)
        size = made.grid.box(index).shape
        boxes = [draw(boxes_within(size)) for _ in range(draw(st.integers(1, 3)))]
        if draw(st.booleans()):
            boxes = [Box.of_shape(size)]
        rounds.append((draw(st.sampled_from(["save", "undo", "go on", "load"])), index, boxes))
    return made, rounds


@st.composite
def boxes_within(draw: st.DrawFn, size: tuple[int, ...]) -> Box:
    """Draw a box that is not empty."""
    start = tuple(draw(st.integers(0, n - 1)) for n in size)
    stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, size, strict=True))
    return Box(start, stop)


class Model:
    """A ledger beside an array of bits, which is what it should know."""

    def __init__(self, made: Header) -> None:
        self.ledger = Ledger(PATH, made)
        self.disk = Disk()
        self.bits = self.saved = np.zeros(made.shape, bool)

    def play(self, then: str, index: BlockIndex, boxes: list[Box]) -> None:
        """Fill boxes of a block, and save or undo the round, or load what was saved."""
        self.bits = self.bits.copy()
        self.ledger.fill(index, boxes)
        block = self.ledger.header.grid.box(index)
        for box in boxes:
            self.bits[block.slices][box.slices] = True
        if then in {"save", "load"}:
            self.disk.commit(self.ledger.dirty())
            self.ledger.saved()
            self.saved = self.bits
        if then == "undo":
            self.ledger.undo()
            self.bits = self.saved
        if then == "load" and self.disk.files:
            self.ledger = self.disk.load()


@given(histories())
def test_it_knows_of_each_block_what_was_filled(
    history: tuple[Header, list[tuple[str, BlockIndex, list[Box]]]],
) -> None:
    model = Model(history[0])
    for played in history[1]:
        model.play(*played)
    ledger = model.ledger
    for index in np.ndindex(Numbering(history[0].grid).counts):
        bits = model.bits[ledger.header.grid.box(index).slices]
        found = np.zeros(bits.shape, bool)
        for box in ledger.of(index):
            found[box.slices] = True
        np.testing.assert_array_equal(found, bits)
        assert ledger.is_whole(index) == bits.all()


@given(histories())
def test_what_is_missing_is_all_the_rest_and_each_voxel_once(
    history: tuple[Header, list[tuple[str, BlockIndex, list[Box]]]],
) -> None:
    model = Model(history[0])
    for played in history[1]:
        model.play(*played)
    times = np.zeros(model.bits.shape, int)
    for box in model.ledger.missing():
        times[box.slices] += 1
    np.testing.assert_array_equal(times, ~model.bits)


@given(histories())
def test_what_is_filled_comes_block_by_block_and_nothing_else(
    history: tuple[Header, list[tuple[str, BlockIndex, list[Box]]]],
) -> None:
    model = Model(history[0])
    for played in history[1]:
        model.play(*played)
    found, blocks = np.zeros(history[0].shape, bool), 0
    for blocks, (block, filled) in enumerate(model.ledger.filled(), 1):  # noqa: B007
        assert filled.voxels > 0
        for box in filled:
            assert not found[block.slices][box.slices].any()
            found[block.slices][box.slices] = True
    np.testing.assert_array_equal(found, model.bits)
    assert model.ledger.filled_blocks == blocks


@given(histories(), st.data())
def test_a_box_is_covered_where_every_voxel_of_it_is_filled(
    history: tuple[Header, list[tuple[str, BlockIndex, list[Box]]]], data: st.DataObject
) -> None:
    model = Model(history[0])
    for played in history[1]:
        model.play(*played)
    box = data.draw(boxes_within(history[0].shape))
    assert model.ledger.covers(box) == model.bits[box.slices].all()


@given(histories())
def test_it_counts_blocks_and_voxels(
    history: tuple[Header, list[tuple[str, BlockIndex, list[Box]]]],
) -> None:
    model = Model(history[0])
    for played in history[1]:
        model.play(*played)
    ledger, grid = model.ledger, history[0].grid
    indices = list(np.ndindex(Numbering(grid).counts))
    left = sum(not model.bits[grid.box(index).slices].all() for index in indices)
    assert (ledger.blocks, ledger.missing_blocks) == (len(indices), left)
    assert ledger.complete == model.bits.all()
    assert ledger.percent == pytest.approx(100 * model.bits.mean(), abs=0.002)
    assert (ledger.percent == 100) == ledger.complete


@given(histories())
def test_a_loaded_ledger_is_the_one_that_was_saved(
    history: tuple[Header, list[tuple[str, BlockIndex, list[Box]]]],
) -> None:
    model = Model(history[0])
    for played in history[1]:
        model.play(*played)
    model.play("save", *whole_of_first(model.ledger))
    loaded = model.disk.load()
    assert loaded.header == model.ledger.header
    assert list(loaded.missing()) == list(model.ledger.missing())
    assert (loaded.percent, loaded.nbytes) == (model.ledger.percent, model.ledger.nbytes)
    assert not loaded.dirty()


def whole_of_first(ledger: Ledger) -> tuple[BlockIndex, list[Box]]:
    """Return the first block and the box that fills it."""
    index = (0,) * len(ledger.header.shape)
    return index, whole(ledger, index)


def test_100_percent_are_shown_only_where_nothing_is_missing() -> None:
    ledger = Ledger(PATH, header((10**7,), (10**6,)))
    for block in range(10):
        ledger.fill((block,), [Box((0,), (10**6 - (block == 9),))])
    assert ledger.percent == 99.999
    ledger.fill((9,), [Box((10**6 - 1,), (10**6,))])
    assert ledger.percent == 100


# -- rounds -------------------------------------------------------------------------------------


@pytest.fixture
def ledger() -> Ledger:
    """The ledger of an array of three segments, saved once."""
    ledger = Ledger(PATH, header((100 * 128, 128), (128, 1)))
    ledger.fill((0, 0), whole(ledger, (0, 0)))
    ledger.dirty()
    ledger.saved()
    return ledger


def test_a_round_writes_the_header_and_the_segments_that_changed(ledger: Ledger) -> None:
    for block in ((0, 5), (99, 127)):
        ledger.fill(block, [Box((0, 0), (3, 1))])
    assert list(ledger.dirty()) == [
        f"{PATH}/.ledger.json",
        f"{PATH}/.blocks-00000.json",
        f"{PATH}/.blocks-00003.json",
    ]


def test_nothing_is_to_be_written_where_nothing_changed(ledger: Ledger) -> None:
    ledger.fill((0, 0), whole(ledger, (0, 0)))
    ledger.bind(None, None)
    assert not ledger.dirty()


def test_what_is_filled_again_is_not_written_again(ledger: Ledger) -> None:
    ledger.fill((0, 1), [Box((0, 0), (3, 1))])
    ledger.saved()
    ledger.fill((0, 1), [Box((1, 0), (2, 1))])
    assert not ledger.dirty()


def test_files_from_before_are_written_once() -> None:
    ledger = Ledger(PATH, header((4,), (2,)), unsaved={"an-old-one": None})
    assert "an-old-one" in ledger.dirty()
    ledger.saved()
    assert not ledger.dirty()


def test_a_new_ledger_is_to_be_written_though_nothing_is_filled() -> None:
    assert list(Ledger(PATH, header((4,), (2,))).dirty()) == [f"{PATH}/.ledger.json"]


def test_what_was_not_saved_is_to_be_written_still(ledger: Ledger) -> None:
    ledger.fill((0, 1), whole(ledger, (0, 1)))
    assert ledger.dirty() == ledger.dirty() != {}


def test_an_undone_round_leaves_no_trace_in_a_later_one(ledger: Ledger) -> None:
    disk = Disk()
    ledger.fill((0, 1), [Box((0, 0), (3, 1))])
    ledger.count(7, 1000)
    ledger.undo()
    ledger.fill((0, 2), whole(ledger, (0, 2)))
    disk.commit(ledger.dirty())
    loaded = disk.load()
    assert not list(loaded.of((0, 1)))
    assert loaded.header.tiles == 0


def test_after_an_undone_round_the_header_is_written_again(ledger: Ledger) -> None:
    # The commit that failed may have replaced it.
    ledger.count(7, 1000)
    ledger.undo()
    assert list(ledger.dirty()) == [f"{PATH}/.ledger.json"]


def test_tiles_are_counted_with_the_time_of_the_last(ledger: Ledger) -> None:
    ledger.count(3, 1000)
    ledger.count(4, 900)
    assert (ledger.header.tiles, ledger.header.written_ms) == (7, 1000)


def test_parked_tiles_are_counted(ledger: Ledger) -> None:
    ledger.count_parked(2)
    ledger.count_parked(1)
    assert ledger.header.parked == 3


def test_the_first_source_and_run_stay(ledger: Ledger) -> None:
    ledger.bind("a", None)
    ledger.bind("b", "r")
    assert (ledger.header.source, ledger.header.run) == ("a", "r")


def test_an_announcement_is_remembered(ledger: Ledger) -> None:
    ledger.announce()
    disk = Disk()
    disk.commit(ledger.dirty())
    assert disk.load().header.announced


def test_a_restarted_ledger_is_empty_and_another(ledger: Ledger) -> None:
    ledger.count(3, 1000)
    ledger.bind("a", "r")
    ledger.announce()
    ledger.restart("another", "s", replaced=("q", "r"))
    assert ledger.header == Header(
        *("an-id", "YX", (12800, 128), (128, 1), (128, 1), "another"),
        run="s",
        replaced=("q", "r"),
    )
    disk = Disk()
    disk.commit(ledger.dirty())
    assert disk.load().header == ledger.header
    assert ledger.missing_blocks == ledger.blocks
    assert (ledger.percent, ledger.nbytes) == (0, 0)


@pytest.mark.parametrize(
    ("run", "new"), [("b", False), ("c", True), ("a", False), (None, False)], ids=str
)
def test_a_run_is_new_where_it_is_neither_the_present_one_nor_one_before(
    run: str | None, new: bool
) -> None:
    assert is_new_run(run, "b", ("a",)) == new


def test_of_an_array_that_is_bound_to_no_run_none_is_new() -> None:
    assert not is_new_run("a", None, ())


def test_a_restart_that_could_not_be_written_is_written_with_the_next_round(ledger: Ledger) -> None:
    ledger.restart("another", "s", replaced=("r",))
    ledger.fill((0, 1), whole(ledger, (0, 1)))
    ledger.undo()
    disk = Disk()
    disk.commit(ledger.dirty())
    assert disk.load().header.run == "s"
    assert disk.load().filled_blocks == 0


def test_a_restart_writes_the_header_before_it_removes_segments(ledger: Ledger) -> None:
    ledger.restart("another")
    files = ledger.dirty()
    assert list(files) == [f"{PATH}/.ledger.json", f"{PATH}/.blocks-00000.json"]
    assert files[f"{PATH}/.blocks-00000.json"] is None


def test_what_is_filled_after_a_restart_is_not_removed(ledger: Ledger) -> None:
    ledger.restart("another")
    ledger.fill((0, 1), whole(ledger, (0, 1)))
    disk = Disk()
    disk.commit(ledger.dirty())
    assert disk.load().is_whole((0, 1))


def test_segments_of_an_earlier_ledger_count_as_empty(ledger: Ledger) -> None:
    content = encode_segment(Segment(whole=1), 0, "a-ledger")
    assert decode_segment(content, 0, "another") is None


# -- few bytes ----------------------------------------------------------------------------------


def many(blocks: int) -> Ledger:
    """Return the ledger of an array of so many blocks."""
    return Ledger(PATH, header((1, blocks, 1024, 1024), (1, 1, 1024, 1024)))


def test_whole_blocks_take_a_bit_or_so_each() -> None:
    ledger = many(100_000)
    for block in range(100_000):
        ledger.fill((0, block, 0, 0), [Box((0, 0, 0, 0), (1, 1, 1024, 1024))])
    assert ledger.complete
    assert ledger.nbytes < 100_000
    assert sum(len(parts[0]) for parts in ledger.dirty().values() if parts) < 5000


@pytest.mark.parametrize("bits", [(1 << 4096) - 1, int("01" * 2048, 2)], ids=["all", "each other"])
def test_a_segment_of_whole_blocks_costs_little_more_than_as_many_numbers(bits: int) -> None:
    segment, numbers = Segment(whole=bits), list(range(4096))
    encoding = timeit.repeat(lambda: encode_segment(segment, 3, "a-ledger"), number=1, repeat=50)
    listing = timeit.repeat(lambda: json.dumps(numbers), number=1, repeat=50)
    assert min(encoding) < 20 * min(listing)


def test_a_huge_array_costs_only_what_is_filled_of_it() -> None:
    ledger = Ledger(PATH, header((1 << 25, 1 << 25), (1, 1)))
    ledger.fill((1 << 20, 1 << 20), [Box((0, 0), (1, 1))])
    assert ledger.nbytes < 2000
    assert sum(box.volume for box in ledger.missing()) == (1 << 50) - 1
    assert len(list(ledger.missing())) == 4


def test_beyond_its_memory_it_remembers_no_more_and_never_too_much() -> None:
    ledger = Ledger(PATH, header((4096, 100), (1, 100)), limit_bytes=20_000)
    part = [Box((0, 0), (1, 50))]
    for block in range(4096):
        ledger.fill((block, 0), part)
    remembered = [block for block in range(4096) if list(ledger.of((block, 0)))]
    assert 0 < len(remembered) < 200
    assert ledger.nbytes <= 20_000
    assert ledger.percent == pytest.approx(100 * len(remembered) * 50 / (4096 * 100))


def test_beyond_its_memory_it_still_remembers_whole_blocks_of_segments_that_it_has() -> None:
    ledger = Ledger(PATH, header((4096, 100), (1, 100)), limit_bytes=2000)
    for block in range(4096):
        ledger.fill((block, 0), [Box((0, 0), (1, 100))])
    assert ledger.complete


# -- missing, in few boxes ----------------------------------------------------------------------

MISSING: dict[str, tuple[set[BlockIndex], int]] = {
    "everything": (set(), 1),
    "the last rows": ({(y, x) for y in range(60) for x in range(80)}, 1),
    "half a row and the rest": ({(y, x) for y in range(60) for x in range(80)} | {(60, 0)}, 2),
    "a column": ({(y, x) for y in range(90) for x in range(80) if x != 7}, 1),
    "one block": ({(y, x) for y in range(90) for x in range(80) if (y, x) != (4, 4)}, 1),
}


@pytest.mark.parametrize(("filled", "count"), MISSING.values(), ids=MISSING)
def test_what_is_missing_comes_in_few_boxes(filled: set[BlockIndex], count: int) -> None:
    ledger = Ledger(PATH, header((900, 800), (10, 10)))
    for block in filled:
        ledger.fill(block, whole(ledger, block))
    assert len(list(ledger.missing())) == count


def test_rows_that_a_tile_left_over_block_after_block_become_one_box() -> None:
    ledger = Ledger(PATH, header((10, 800), (10, 10)))
    for block in range(80):
        ledger.fill((0, block), [Box((0, 0), (7, 10))])
    assert list(ledger.missing()) == [Box((7, 0), (10, 800))]


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5)
    .map(tuple)
    .flatmap(
        lambda counts: st.tuples(
            st.just(counts),
            st.integers(0, math.prod(counts)),
            st.integers(0, math.prod(counts)),
        )
    )
)
def test_a_run_of_blocks_is_made_up_of_few_boxes(
    run: tuple[tuple[int, ...], int, int],
) -> None:
    counts, first, stop = run
    numbering = Numbering(header(tuple(3 * n - 1 for n in counts), (3,) * len(counts)).grid)
    boxes = list(numbering.boxes(first, stop))
    blocks = [numbering.box(number) for number in range(first, stop)]
    assert len(boxes) <= 2 * len(counts) - 1
    assert sum(box.volume for box in boxes) == sum(block.volume for block in blocks)
    assert all(any(box.intersection(block) == block for box in boxes) for block in blocks)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple), st.data())
def test_the_number_of_a_block_tells_the_block(
    counts: tuple[int, ...], data: st.DataObject
) -> None:
    numbering = Numbering(header(counts, (1,) * len(counts)).grid)
    number = data.draw(st.integers(0, numbering.total - 1))
    assert numbering.of(numbering.index(number)) == number
    assert numbering.index(number) == tuple(np.unravel_index(number, counts))


def test_joining_needs_no_more_memory_than_its_batches() -> None:
    endless = (Box((2 * i,), (2 * i + 1,)) for i in range(10**12))
    assert next(joined(endless)) == Box((0,), (1,))


# -- the files ----------------------------------------------------------------------------------


def test_the_header_is_json_that_people_can_read() -> None:
    made = header((4, 6), (2, 3), source="s", run="r", tiles=5, written_ms=7, parked=1)
    document = json.loads(encode_header(made))
    assert len(document.pop("crc32c")) == 8
    assert document == {
        "format": 1,
        "id": "an-id",
        "axes": "YX",
        "shape": [4, 6],
        "file": [2, 3],
        "block": [2, 3],
        "ledger": "a-ledger",
        "source": "s",
        "run": "r",
        "tiles": 5,
        "written_ms": 7,
        "parked": 1,
        "announced": False,
        "replaced": [],
    }


def test_a_segment_is_json_that_people_can_read() -> None:
    ledger = Ledger(PATH, header((4, 5000), (2, 2)))
    for block in range(1600, 1605):
        ledger.fill((1, block), whole(ledger, (1, block)))
    ledger.fill((1, 1700), [Box((0, 0), (1, 2))])
    content = ledger.dirty()[f"{PATH}/.blocks-00001.json"]
    assert content is not None
    document = json.loads(content[0])
    assert len(document.pop("crc32c")) == 8
    assert document == {
        "format": 1,
        "ledger": "a-ledger",
        "whole": [[4100, 4105]],
        "partly": {"4200": [[[0, 0], [1, 2]]]},
    }


def test_the_names_of_files_are_those_of_no_array() -> None:
    assert HEADER_NAME.startswith(".")
    assert segment_name(7).startswith(".")
    assert [segment_number(segment_name(n)) for n in (0, 7, 10**6)] == [0, 7, 10**6]
    assert segment_number(f"{segment_name(7)}.damaged-x") is None


@given(st.sampled_from(range(10**6)), st.integers(0, 7))
def test_any_bit_that_flips_is_noticed(place: int, bit: int) -> None:
    for content, decode in FILES.values():
        at = place % len(content)
        damaged = bytearray(content)
        damaged[at] ^= 1 << bit
        with pytest.raises(Damaged):
            decode(bytes(damaged))


FILES: Mapping[str, tuple[bytes, Any]] = {
    "header": (encode_header(header((4, 6), (2, 3), run="r")), decode_header),
    "segment": (
        encode_segment(Segment(5, {3: b"[[[0,0],[1,2]]]"}), 2, "a-ledger"),
        lambda content: decode_segment(content, 2, "a-ledger"),
    ),
}


@pytest.mark.parametrize(("content", "decode"), FILES.values(), ids=FILES)
@pytest.mark.parametrize("length", [0, 1, 20, -1])
def test_a_file_that_was_cut_is_noticed(content: bytes, decode: Any, length: int) -> None:
    with pytest.raises(Damaged):
        decode(content[:length])


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"null", b'{"crc32c":"00000000",}', b"\xff" * 99]
)
def test_what_is_no_ledger_is_noticed(content: bytes) -> None:
    with pytest.raises(Damaged):
        decode_header(content)


@pytest.mark.parametrize("number", [0, 2])
def test_blocks_that_are_not_the_segments_are_noticed(number: int) -> None:
    content = encode_segment(Segment(1), 1, "a-ledger")
    with pytest.raises(Damaged, match="blocks 4096 to 4097 are not of this segment"):
        decode_segment(content, number, "a-ledger")


def test_a_format_of_the_future_is_not_believed() -> None:
    rest = encode_header(header((4,), (2,)))[len(b'{"crc32c":"00000000",') :]
    later = rest.replace(b'"format":1', b'"format":2')
    content = b'{"crc32c":"%08x",' % google_crc32c.value(later) + later
    with pytest.raises(Damaged, match="its format is 2, not 1"):
        decode_header(content)


def test_the_header_takes_the_axes_that_are_stored_before_those_of_a_message() -> None:
    layout = Layout("CYX", (1, 4, 6), np.dtype("uint8"), (1, 2, 3), None)
    assert Header.of(layout, "i", "SYX", "l").axes == "CYX"
    unknown = Layout("", (1, 4, 6), np.dtype("uint8"), (1, 2, 3), None)
    assert Header.of(unknown, "i", "SYX", "l").axes == "SYX"
