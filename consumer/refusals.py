"""Deliveries that can never be written: parked, counted in their array's ledger, acknowledged."""

import logging
from collections.abc import Callable
from functools import partial

from consumer.blocks import DeliveryId
from consumer.delivery import Settling
from consumer.errors import ConsumerError, ParkError
from consumer.handles import Handles, key_of
from consumer.holdings import Holdings
from consumer.inbox import Held, Inbox
from consumer.metrics import Metrics
from consumer.requests import Written
from consumer.storage import Storage

log = logging.getLogger(__name__)


class Refusals:
    """Parks deliveries, and sees each of them acknowledged or given back.

    Parameters
    ----------
    held : Holdings
        All deliveries that are held; those that are acknowledged are taken out.
    parked : callable
        Hears of each delivery that is parked.
    advance : callable
        Does what can be done when a delivery is settled.
    """

    def __init__(
        self,
        broker: Settling,
        storage: Storage,
        inbox: Inbox,
        handles: Handles,
        held: Holdings,
        metrics: Metrics,
        *,
        parked: Callable[[Held], None],
        advance: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._storage = storage
        self._inbox = inbox
        self._handles = handles
        self._held = held
        self._metrics = metrics
        self._note_parked = parked
        self._advance = advance
        self._parking: set[DeliveryId] = set()

    @property
    def busy(self) -> bool:
        """Whether a delivery is on its way to the parking queue."""
        return bool(self._parking)

    def park(self, held: Held, error: ParkError) -> None:
        """Park a delivery that has left the inbox, and acknowledge it then."""
        delivery = held.delivery
        log.warning(
            "message parked",
            extra={
                "reason": error.reason,
                "detail": str(error),
                "routing_key": delivery.envelope.routing_key,
                "message_id": delivery.properties.message_id,
                "app_id": delivery.properties.app_id,
            },
        )
        assert held.body is not None
        self._inbox.forget_decoded(held)
        self._parking.add(delivery.id)
        self._broker.park(delivery, held.body, error, partial(self._parked, held, error.reason))

    def _parked(self, held: Held, reason: str, confirmed: bool) -> None:
        outline = held.outline
        self._inbox.release(held)
        if not confirmed:
            self._parking.discard(held.delivery.id)
            return
        self._metrics.parked.labels(reason=reason).inc()
        self._note_parked(held)
        done = partial(self._settle, held.delivery.id)
        handle = self._handles.find(key_of(outline)) if outline else None
        if outline and handle:
            # Whoever waits for the array learns so that something of it will not come.
            self._storage.remark(handle.key, done, parked=len(outline.boxes))
        else:
            done(None, None)

    def _settle(
        self, identity: DeliveryId, _written: Written | None, _error: ConsumerError | None
    ) -> None:
        self._parking.discard(identity)
        if self._held.pop(identity) is not None:
            self._broker.acknowledge(identity)
        self._advance()
