"""Boxes and coverage, against NumPy masks that say of each voxel whether it is covered."""

import itertools
import random
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.coverage import Box, Coverage

Mask = npt.NDArray[np.bool_]
# A shape, and boxes inside it.
Space = tuple[tuple[int, ...], list[Box]]

a_property = settings(max_examples=60)


@st.composite
def spaces(draw: st.DrawFn, boxes: int = 10) -> Space:
    """Draw a shape of one to four axes and boxes inside it, likely to meet each other."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    return shape, draw(st.lists(_boxes_in(shape), min_size=1, max_size=boxes))


def _boxes_in(shape: Sequence[int]) -> st.SearchStrategy[Box]:
    return st.tuples(*map(_extents, shape)).map(
        lambda extents: Box(tuple(a for a, _ in extents), tuple(b for _, b in extents))
    )


def _extents(size: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.sampled_from([(a, b) for a in range(size) for b in range(a + 1, size + 1)])


def _mask(shape: Sequence[int], boxes: Sequence[Box]) -> Mask:
    mask = np.zeros(shape, bool)
    for box in boxes:
        mask[box.slices] = True
    return mask


def _counts(shape: Sequence[int], boxes: Sequence[Box]) -> npt.NDArray[np.int_]:
    """Return how many of the boxes each voxel lies in."""
    counts = np.zeros(shape, int)
    for box in boxes:
        counts[box.slices] += 1
    return counts


def _last(space: Space) -> tuple[tuple[int, ...], list[Box], Box]:
    """Return the shape, all boxes but the last, and the last."""
    shape, boxes = space
    return shape, boxes[:-1], boxes[-1]


# --- Boxes


@a_property
@given(spaces(boxes=2))
def test_the_intersection_is_where_both_boxes_are(space: Space) -> None:
    shape, boxes = space
    shared = boxes[0].intersection(boxes[-1])

    both = _mask(shape, boxes[:1]) & _mask(shape, boxes[-1:])
    assert (_mask(shape, [] if shared is None else [shared]) == both).all()


@a_property
@given(spaces(boxes=2))
def test_the_intersection_is_the_same_from_either_side(space: Space) -> None:
    _, boxes = space

    assert boxes[0].intersection(boxes[-1]) == boxes[-1].intersection(boxes[0])


@a_property
@given(spaces(boxes=2))
def test_minus_leaves_each_voxel_of_the_one_outside_the_other_once(space: Space) -> None:
    shape, boxes = space
    left = boxes[0].minus(boxes[-1])

    wanted = _mask(shape, boxes[:1]) & ~_mask(shape, boxes[-1:])
    assert (_counts(shape, left) == wanted).all()


@a_property
@given(spaces(boxes=2))
def test_minus_leaves_at_most_two_boxes_for_each_axis(space: Space) -> None:
    shape, boxes = space

    assert len(boxes[0].minus(boxes[-1])) <= max(1, 2 * len(shape))


def test_boxes_that_share_a_face_do_not_intersect() -> None:
    assert Box((0, 0), (2, 2)).intersection(Box((2, 0), (4, 2))) is None


def test_boxes_that_share_a_corner_do_not_intersect() -> None:
    assert Box((0, 0), (2, 2)).intersection(Box((2, 2), (4, 4))) is None


def test_minus_itself_leaves_nothing() -> None:
    assert Box((1, 2), (3, 4)).minus(Box((1, 2), (3, 4))) == []


def test_the_hole_in_the_middle_of_a_square_leaves_four_boxes() -> None:
    assert len(Box((0, 0), (3, 3)).minus(Box((1, 1), (2, 2)))) == 4


@a_property
@given(spaces(boxes=1))
def test_a_box_has_the_shape_of_its_region(space: Space) -> None:
    shape, (box,) = space

    assert np.zeros(shape)[box.slices].shape == box.shape


@a_property
@given(spaces(boxes=1))
def test_a_box_has_as_many_voxels_as_its_region(space: Space) -> None:
    shape, (box,) = space

    assert np.zeros(shape)[box.slices].size == box.volume


def test_a_box_of_a_shape_lies_at_the_origin() -> None:
    assert Box.of_shape([2, 3]) == Box((0, 0), (2, 3))


def test_a_shifted_box_is_seen_from_the_origin_given() -> None:
    assert Box((5, 7), (8, 9)).shifted((5, 6)) == Box((0, 1), (3, 3))


def test_the_volume_of_a_vast_box_does_not_overflow() -> None:
    assert Box.of_shape([1 << 40] * 4).volume == 1 << 160


# --- Coverage


@a_property
@given(spaces())
def test_add_returns_how_many_voxels_are_new(space: Space) -> None:
    shape, before, box = _last(space)
    new = _mask(shape, [*before, box]).sum() - _mask(shape, before).sum()

    assert Coverage(before).add(box) == new


@a_property
@given(spaces())
def test_voxels_are_counted_once(space: Space) -> None:
    shape, boxes = space

    assert Coverage(boxes).voxels == _mask(shape, boxes).sum()


@a_property
@given(spaces())
def test_each_covered_voxel_lies_in_one_box(space: Space) -> None:
    shape, boxes = space

    assert (_counts(shape, list(Coverage(boxes))) == _mask(shape, boxes)).all()


@a_property
@given(spaces())
def test_the_length_is_the_number_of_boxes(space: Space) -> None:
    _, boxes = space
    coverage = Coverage(boxes)

    assert len(coverage) == len(list(coverage))


@a_property
@given(spaces())
def test_covers_is_whether_every_voxel_is_covered(space: Space) -> None:
    shape, boxes, box = _last(space)

    assert Coverage(boxes).covers(box) == _mask(shape, boxes)[box.slices].all()


@a_property
@given(spaces())
def test_missing_is_each_voxel_within_that_is_not_covered_once(space: Space) -> None:
    shape, boxes, within = _last(space)
    left = Coverage(boxes).missing(within)

    wanted = _mask(shape, [within]) & ~_mask(shape, boxes)
    assert (_counts(shape, left) == wanted).all()


@a_property
@given(spaces())
def test_adding_what_is_missing_makes_it_whole(space: Space) -> None:
    shape, boxes = space
    coverage = Coverage(boxes)

    for box in coverage.missing(Box.of_shape(shape)):
        coverage.add(box)

    assert coverage.voxels == np.prod(shape)


@a_property
@given(spaces(), st.randoms(use_true_random=False))
def test_duplicates_in_any_order_change_no_voxel(space: Space, chance: random.Random) -> None:
    shape, boxes = space
    again = boxes * 3
    chance.shuffle(again)

    assert (_mask(shape, list(Coverage(again))) == _mask(shape, boxes)).all()


@a_property
@given(spaces())
def test_no_two_boxes_that_share_a_whole_face_remain(space: Space) -> None:
    _, boxes = space

    pairs = itertools.permutations(Coverage(boxes), 2)
    assert not [pair for pair in pairs if _share_a_face(*pair)]


def _share_a_face(box: Box, after: Box) -> bool:
    """Whether `after` goes on where `box` ends along one axis and is as wide along the others."""
    differing = [
        axis
        for axis in range(len(box.start))
        if (box.start[axis], box.stop[axis]) != (after.start[axis], after.stop[axis])
    ]
    return len(differing) == 1 and box.stop[differing[0]] == after.start[differing[0]]


@a_property
@given(spaces(), st.integers(0, 10))
def test_update_covers_what_either_covers(space: Space, split: int) -> None:
    shape, boxes = space
    coverage = Coverage(boxes[:split])

    coverage.update(Coverage(boxes[split:]))

    assert (_mask(shape, list(coverage)) == _mask(shape, boxes)).all()


@a_property
@given(spaces())
def test_a_copy_has_the_same_voxels(space: Space) -> None:
    shape, boxes = space

    assert (_mask(shape, list(Coverage(boxes).copy())) == _mask(shape, boxes)).all()


@a_property
@given(spaces())
def test_what_is_added_to_a_copy_stays_out_of_the_original(space: Space) -> None:
    shape, boxes = space
    original = Coverage(boxes)

    original.copy().add(Box.of_shape(shape))

    assert original.voxels == _mask(shape, boxes).sum()


@a_property
@given(spaces())
def test_a_copy_stays_as_it_was_when_the_original_grows(space: Space) -> None:
    shape, boxes = space
    original = Coverage(boxes)
    copy = original.copy()

    original.add(Box.of_shape(shape))

    assert copy.voxels == _mask(shape, boxes).sum()


def test_an_empty_coverage_has_no_voxels() -> None:
    assert Coverage().voxels == 0


def test_an_empty_coverage_misses_everything() -> None:
    assert Coverage().missing(Box((0, 0), (2, 2))) == [Box((0, 0), (2, 2))]


def test_what_is_missing_may_lie_beyond_all_boxes() -> None:
    assert Coverage([Box((0,), (2,))]).missing(Box((5,), (9,))) == [Box((5,), (9,))]


def test_as_many_duplicates_as_there_are_slots_leave_the_other_slots_missing() -> None:
    coverage = Coverage([Box((0,), (1,))] * 4)

    assert coverage.missing(Box((0,), (4,))) == [Box((1,), (4,))]


def test_overlaps_of_as_many_voxels_as_there_are_leave_a_hole_missing() -> None:
    coverage = Coverage([Box((0,), (3,)), Box((1,), (4,))])

    assert coverage.missing(Box((0,), (6,))) == [Box((4,), (6,))]


RASTERS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "along one axis": ((64,), (8,)),
    "two axes": ((64, 64), (8, 16)),
    "two axes, uneven edges": ((61, 50), (8, 16)),
    "three axes": ((8, 32, 32), (2, 8, 8)),
    "four axes": ((3, 4, 16, 16), (1, 2, 8, 4)),
}


def _raster(shape: tuple[int, ...], size: tuple[int, ...]) -> list[Box]:
    corners = itertools.product(*(range(0, n, step) for n, step in zip(shape, size, strict=True)))
    return [
        Box(at, tuple(min(a + b, n) for a, b, n in zip(at, size, shape, strict=True)))
        for at in corners
    ]


@pytest.mark.parametrize(("shape", "size"), RASTERS.values(), ids=RASTERS)
def test_tiles_in_raster_order_become_one_box(
    shape: tuple[int, ...], size: tuple[int, ...]
) -> None:
    assert list(Coverage(_raster(shape, size))) == [Box.of_shape(shape)]


@pytest.mark.parametrize(("shape", "size"), RASTERS.values(), ids=RASTERS)
def test_tiles_in_reverse_order_become_one_box(
    shape: tuple[int, ...], size: tuple[int, ...]
) -> None:
    assert list(Coverage(reversed(_raster(shape, size)))) == [Box.of_shape(shape)]


def test_tiles_in_raster_order_never_make_more_than_two_boxes() -> None:
    coverage = Coverage()
    most = 0
    for box in _raster((64, 64), (8, 8)):
        coverage.add(box)
        most = max(most, len(coverage))

    assert most == 2


def test_the_row_that_joins_two_halves_makes_them_one_box() -> None:
    coverage = Coverage([Box((0, 0), (2, 8)), Box((3, 0), (5, 8))])

    coverage.add(Box((2, 0), (3, 8)))

    assert list(coverage) == [Box((0, 0), (5, 8))]


def test_4096_tiles_in_random_order_make_the_block_whole(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiles = _raster((4096, 4096), (64, 64))
    random.Random(0).shuffle(tiles)

    start = time.perf_counter()
    coverage = Coverage(tiles)
    took = time.perf_counter() - start
    with capsys.disabled():
        print(f"\n4096 tiles of 64² shuffled over 4096²: {took:.2f} s, {len(coverage)} boxes left")

    assert coverage.voxels == 4096**2
