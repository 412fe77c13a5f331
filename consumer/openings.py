"""Opens an array to be written, with what its ledger says of it; runs in worker threads.

Which arrays are open, and for how long, is `consumer.writer`'s.
"""

import logging
import secrets
from itertools import islice
from typing import TypeAlias

from consumer.arrays import Store, open_array
from consumer.blocks import ArrayKey
from consumer.coverage import Box
from consumer.ledger import Ledger, is_new_run
from consumer.ledger_files import load
from consumer.ledger_format import Header
from consumer.placement import BlockIndex
from consumer.requests import Open, Setup
from consumer.rounds import WritableArray, now_ms

# Of an array's blocks that are partly filled, so many are told of when it is opened.
_MOST_PARTLY = 4096
# Of an array's earlier runs, so many are known; tiles of one before would replace the present one.
_MOST_REPLACED = 32

Partly: TypeAlias = dict[BlockIndex, tuple[Box, ...]] | None

log = logging.getLogger(__name__)


def open_writable(setup: Setup, store: Store, request: Open) -> tuple[WritableArray, Partly]:
    """Open an array; return it, and which blocks its ledger says to be partly filled.

    Raises
    ------
    ConsumerError, OSError
        As `consumer.arrays.open_array` does.
    """
    outline = request.outline
    # It may be opened again because somebody removed it.
    store.commit.forget_folders()
    with store.commit.judging():
        array = open_array(
            store,
            outline.entry,
            outline.check,
            write_empty_chunks=setup.write_empty_chunks,
            max_block_bytes=request.max_block_bytes,
        )
        if request.renew:
            # A message that is refused begins no run.
            array.check(outline.entry)
            outline.check(array.layout)
    fresh = Header.of(array.layout, array.ledger_id, outline.entry.axes, secrets.token_hex(8))
    ledger, damages = load(setup.output_root, array.key, fresh, now_ms(), setup.max_ledger_bytes)
    for damage in damages:
        log.error("a ledger is damaged; what it says counts as missing", extra={"what": damage})
    if request.renew:
        _renew(ledger, array.key, outline.entry.run)
    return WritableArray(array, ledger), dict(islice(ledger.partly(), _MOST_PARTLY))


def _renew(ledger: Ledger, array: ArrayKey, run: str | None) -> None:
    """Have an array count as empty where another run than the one that filled it begins."""
    old = ledger.header
    if old.run is None or not is_new_run(run, old.run, old.replaced):
        return
    replaced = (*old.replaced, old.run)[-_MOST_REPLACED:]
    ledger.restart(secrets.token_hex(8), run, replaced=replaced)
    log.warning(
        "a new run begins: the array counts as empty",
        extra={"store": array.store, "array": array.path, "run": run, "replaced": old.run},
    )
