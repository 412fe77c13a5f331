"""Every error of the consumer, and what becomes of the delivery that met it.

::

    ConsumerError
    ├── ParkError              park: this message can never be written
    │   ├── Undecodable
    │   ├── InvalidMessage
    │   ├── UnknownVersion
    │   ├── ChecksumMismatch
    │   ├── TooLarge
    │   ├── UnsafePath
    │   ├── OutOfBounds
    │   ├── UnsafeCast
    │   ├── ArrayMismatch
    │   │   └── Leftovers
    │   ├── SourceConflict
    │   ├── RunConflict
    │   ├── DamagedBlock
    │   ├── StoreNotWritable
    │   ├── KillsConsumer
    │   └── Unexpected
    ├── RetryError             retry: keep it unacknowledged, go on when the fault clears
    │   ├── StorageFault
    │   ├── StoreRemoved
    │   └── Fenced
    ├── ReconnectError         reconnect: the channel and its tags are gone
    │   └── BrokerLost
    ├── StopError              stop: exit code 2 with one line that says what to change
    │   ├── UnusableSettings
    │   ├── UnusableRoot
    │   └── WriterLost
    └── PublishError           raise: told to the producer; its tiles are kept and tried again
        ├── BrokerUnreachable
        ├── AccessRefused
        ├── Unroutable
        ├── QueueFull
        ├── BrokerBlocked
        ├── Unconfirmed
        └── NotCompleted

Errors of the operating system are translated here and nowhere else; those of pika in the
modules that import pika, those of zarr in the modules that import zarr.
"""

import errno
from enum import StrEnum
from typing import ClassVar

_LONGEST = 600
_LEFT_OUT = " … "


class Disposition(StrEnum):
    """What becomes of the deliveries that an error concerns."""

    PARK = "park"
    RETRY = "retry"
    RECONNECT = "reconnect"
    STOP = "stop"
    RAISE = "raise"


class ConsumerError(Exception):
    """Base of all errors that the consumer raises on purpose.

    Their texts quote what strangers sent, so each is made one line of bounded length here.
    """

    disposition: ClassVar[Disposition]

    def __init__(self, text: str) -> None:
        super().__init__(_one_short_line(text))


class ParkError(ConsumerError):
    """The message can never be written; `reason` is its label in metrics and parking headers."""

    disposition = Disposition.PARK
    reason: ClassVar[str]


class Undecodable(ParkError):
    """The body is not what its content type says."""

    reason = "undecodable"


class InvalidMessage(ParkError):
    """The message departs from the wire contract."""

    reason = "invalid"


class UnknownVersion(ParkError):
    """The message's type is none that this consumer speaks."""

    reason = "unknown_version"


class ChecksumMismatch(ParkError):
    """The body is not the one that was checksummed."""

    reason = "checksum"


class TooLarge(ParkError):
    """A size is beyond a limit."""

    reason = "too_large"


class UnsafePath(ParkError):
    """The store key or array path is not one that stays below the output root."""

    reason = "unsafe_path"


class OutOfBounds(ParkError):
    """A crop leaves its tile, or a stitched crop its array."""

    reason = "out_of_bounds"


class UnsafeCast(ParkError):
    """The tile's values do not fit the array's dtype."""

    reason = "unsafe_cast"


class ArrayMismatch(ParkError):
    """What is stored is not what the message says."""

    reason = "array_mismatch"


class Leftovers(ArrayMismatch):
    """There are files where the array would be, but no metadata: perhaps they are being removed."""


class SourceConflict(ParkError):
    """A second source writes into an array."""

    reason = "source_conflict"


class RunConflict(ParkError):
    """A second run writes into an array."""

    reason = "run_conflict"


class DamagedBlock(ParkError):
    """What is stored of a block cannot be decoded, so nothing can be merged with it."""

    reason = "damaged_block"


class StoreNotWritable(ParkError):
    """This store cannot be written, whereas its root can."""

    reason = "store_not_writable"


class KillsConsumer(ParkError):
    """Consumers were killed time and again while they handled the message and nothing else."""

    reason = "kills_consumer"


class Unexpected(ParkError):
    """The message met a defect of the consumer."""

    reason = "unexpected"


class RetryError(ConsumerError):
    """A fault that may clear by itself."""

    disposition = Disposition.RETRY


class StorageFault(RetryError):
    """The output root or what lies below it failed."""


class StoreRemoved(RetryError):
    """A folder that existed is gone: somebody removed the store."""


class Fenced(RetryError):
    """Another consumer has taken the store: what was read of it is worth nothing any more."""


class ReconnectError(ConsumerError):
    """The channel is of no more use."""

    disposition = Disposition.RECONNECT


class BrokerLost(ReconnectError):
    """The connection or channel was lost, refused or cancelled."""


class StopError(ConsumerError):
    """The consumer cannot run as configured."""

    disposition = Disposition.STOP


class UnusableSettings(StopError):
    """A setting is missing, malformed or impossible beside the others."""


class UnusableRoot(StopError):
    """The output root cannot be written."""


class WriterLost(StopError):
    """The writer process ended on its own."""


class PublishError(ConsumerError):
    """Tiles cannot be published now. Those that were taken are kept and tried again."""

    disposition = Disposition.RAISE


class BrokerUnreachable(PublishError):
    """There is no connection to RabbitMQ."""


class AccessRefused(PublishError):
    """RabbitMQ refuses this user, this virtual host or what the user asks for."""


class Unroutable(PublishError):
    """There is no exchange, or no queue behind it, that takes the message."""


class QueueFull(PublishError):
    """The queue refuses more."""


class BrokerBlocked(PublishError):
    """RabbitMQ takes nothing from publishers: it is short of memory or disk."""


class Unconfirmed(PublishError):
    """RabbitMQ does not confirm, or closes the channel for what it is sent."""


class NotCompleted(PublishError):
    """Arrays are not complete, or nobody can tell."""


def _one_short_line(text: str) -> str:
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(line) <= _LONGEST:
        return line
    # What was wrong stands first, what would be right last.
    half = (_LONGEST - len(_LEFT_OUT)) // 2
    return f"{line[:half]}{_LEFT_OUT}{line[-half:]}"


_NEVER_WRITABLE_PATH = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EISDIR}
_NOT_PERMITTED = {errno.EACCES, errno.EPERM, errno.EROFS}


def from_os_error(error: OSError, *, root_writable: bool) -> ConsumerError:
    """Translate an operating system's error on a path below the output root.

    Parameters
    ----------
    error : OSError
        As raised while reading or writing below the root.
    root_writable : bool
        Whether the root itself can be written at this moment: a permission error is then this
        store's own and final, otherwise the root's and transient.
    """
    what = f"{error.strerror or error} (errno {error.errno}) at {error.filename!r}"
    if error.errno in _NEVER_WRITABLE_PATH:
        return UnsafePath(f"no file can be written there: {what}")
    if error.errno in _NOT_PERMITTED and root_writable:
        return StoreNotWritable(f"the store refuses writing, the output root does not: {what}")
    if error.errno == errno.EXDEV and root_writable:
        return StoreNotWritable(
            f"the store is on another file system than the output root, so no file can be moved "
            f"into place in one step; make it a folder of the root's own: {what}"
        )
    if error.errno == errno.ENOENT:
        return StoreRemoved(f"removed while in use: {what}")
    return StorageFault(what)


def is_shortage(error: BaseException) -> bool:
    """Whether memory or threads have run out, which says nothing of what was being done."""
    # As Python says where the kernel starts no more.
    no_thread = isinstance(error, RuntimeError) and str(error) == "can't start new thread"
    return no_thread or isinstance(error, MemoryError)


def without_values(error: str) -> str:
    """Return argparse's word on unknown arguments, without what may be a password."""
    what, unknown, given = error.partition("unrecognized arguments: ")
    flags = [word.partition("=")[0] for word in given.split() if word.startswith("-")]
    return f"{what}{unknown}{' '.join(flags) or given}"
