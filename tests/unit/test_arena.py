"""Memory for block buffers: given out once, and free again as soon as nothing refers to it."""

import mmap
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from consumer.arena import Arena, part

PAGE = mmap.PAGESIZE


def test_parts_that_are_in_use_never_overlap_and_all_comes_back() -> None:
    chance = random.Random(7)
    arena = Arena(64 * PAGE)
    taken: dict[int, npt.NDArray[np.uint8]] = {}
    for number in range(1, 3000):
        if taken and chance.random() < 0.5:
            value = chance.choice(list(taken))
            assert (taken.pop(value) == value % 256).all()
        else:
            buffer = arena.take(chance.randrange(1, 4 * PAGE))
            if buffer is not None:
                buffer[...] = number % 256
                taken[number] = buffer
    taken.clear()
    del buffer
    assert arena.take(64 * PAGE) is not None


def test_what_is_too_large_for_every_gap_is_refused() -> None:
    arena = Arena(4 * PAGE)
    first, second, third = (arena.take(PAGE) for _ in range(3))
    assert first is not None
    assert third is not None
    del second
    assert arena.take(2 * PAGE) is None
    assert arena.take(PAGE) is not None


def test_a_part_is_in_use_as_long_as_a_view_of_it_is() -> None:
    arena = Arena(PAGE)
    buffer = arena.take(PAGE)
    assert buffer is not None
    view = buffer.view(np.float32).reshape(32, -1)[3:5]
    del buffer
    assert arena.take(64) is None
    del view
    assert arena.take(64) is not None


@pytest.mark.parametrize("pages", [1, 16])
def test_pages_that_came_back_take_no_memory(pages: int) -> None:
    arena = Arena(64 * PAGE)
    buffer = arena.take(pages * PAGE)
    assert buffer is not None
    buffer[...] = 1
    file = Path(f"/proc/self/fd/{arena.descriptor}")
    assert file.stat().st_blocks * 512 == pages * PAGE
    del buffer
    arena.reclaim()
    assert file.stat().st_blocks == 0


def test_another_mapping_sees_what_was_written() -> None:
    arena = Arena(4 * PAGE)
    arena.take(100)
    buffer = arena.take(600)
    assert buffer is not None
    voxels = buffer.view(np.uint16).reshape(20, 15)
    voxels[...] = np.arange(300, dtype=np.uint16).reshape(20, 15)
    theirs = mmap.mmap(arena.descriptor, arena.nbytes)
    seen = part(theirs, arena.offset(voxels), voxels.shape, voxels.dtype)
    assert np.array_equal(seen, voxels)
