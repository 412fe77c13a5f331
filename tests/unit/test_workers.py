"""What becomes of errors in worker threads."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from consumer.errors import ConsumerError, StorageFault, StoreNotWritable, Unexpected
from consumer.trials import Root
from consumer.workers import Workers


@pytest.fixture
def workers(tmp_path: Path) -> Workers:
    return Workers(1, Root(tmp_path), lambda call: call())


def failing(*errors: Exception | None) -> Callable[[], int]:
    """Return work that ends so, time after time; return how often it was done where it succeeds."""
    ends = iter(errors)
    done = 0

    def work() -> int:
        nonlocal done
        done += 1
        if (error := next(ends)) is not None:
            raise error
        return done

    return work


REFUSED = OSError(errno.EROFS, "read-only")


def test_what_the_root_refused_until_just_now_is_done_once_more(workers: Workers) -> None:
    assert workers.translated(failing(REFUSED, None)) == 2


@pytest.mark.parametrize(
    ("errors", "raised"),
    [
        ((REFUSED, REFUSED), StoreNotWritable),
        ((REFUSED, OSError(errno.EIO, "broken")), StorageFault),
        ((OSError(errno.EIO, "broken"),), StorageFault),
        ((MemoryError(),), StorageFault),
        ((RuntimeError("can't start new thread"),), StorageFault),
        ((RuntimeError("a bug"),), Unexpected),
        ((KeyError("a bug"),), Unexpected),
    ],
    ids=str,
)
def test_what_fails_ends_as_an_error_of_the_consumers_own(
    workers: Workers, errors: tuple[Exception, ...], raised: type[ConsumerError]
) -> None:
    with pytest.raises(raised) as caught:
        workers.translated(failing(*errors))
    assert type(caught.value) is raised


def test_what_the_root_refuses_too_is_waited_for(workers: Workers, tmp_path: Path) -> None:
    tmp_path.rmdir()
    with pytest.raises(ConsumerError) as caught:
        workers.translated(failing(REFUSED))
    assert not isinstance(caught.value, StoreNotWritable)
