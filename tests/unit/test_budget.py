"""What fits a memory budget."""

import pytest

from consumer.budget import least_limit, max_block_bytes


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5, 1000, 4 << 20, (64 << 20) + 1, 10**12 + 7])
def test_the_least_limit_is_the_first_that_fits(block: int) -> None:
    limit = least_limit(block)
    assert max_block_bytes(limit) >= block
    assert max_block_bytes(limit - 1) < block
