"""What the consumer announces on the exchange `<prefix>.events`: the models of its messages.

At least once: who hears of an event drops those whose `message_id` it knows. Later versions may add
keys, so what is unknown is ignored.
"""

import hashlib
import json
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, computed_field

from consumer.keys import MAX_KEY_BYTES

CONTENT_TYPE = "application/json"


def events_exchange(prefix: str) -> str:
    """Return the name of the topic exchange that events go to."""
    return f"{prefix}.events"


def completions_queue(prefix: str) -> str:
    """Return the first part of the names of queues on which producers hear of complete arrays."""
    return f"{prefix}.completed"


class Event(BaseModel):
    """What happened to a store key. Published as JSON under `routing_key`."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    event: ClassVar[str]

    @property
    def routing_key(self) -> str:
        """What it is published under."""
        raise NotImplementedError

    @property
    def identity(self) -> str | None:
        """AMQP's `message_id`: the same where the same event is published again."""
        return None

    def routing_key_of(self, name: str) -> str:
        """Return the routing key of the event on a store key; what is too long is cut."""
        key = f"{self.event}.{name}".encode()
        return key[:MAX_KEY_BYTES].decode(errors="ignore")


class ArrayEvent(Event):
    """An event on one array."""

    store: str
    array: str
    source: str | None = None
    run: str | None = None

    @property
    def routing_key(self) -> str:
        """The event and the store key."""
        return self.routing_key_of(self.store)


class ArrayCompleted(ArrayEvent):
    """Every voxel of an array is filled and durable.

    `ledger` is another one after `consumer reset`, for another run, and where an array was removed
    and made anew.
    """

    event: ClassVar[str] = "array.completed"

    ledger: str | None = None

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own advice for properties
    @property
    def message_id(self) -> str:
        """The same for the same store, array and ledger; also AMQP's `message_id`."""
        text = json.dumps([self.event, self.store, self.array, self.ledger])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def identity(self) -> str | None:
        """The message id."""
        return self.message_id


class ArrayProgress(ArrayEvent):
    """So many voxels of an array are filled and durable."""

    event: ClassVar[str] = "array.progress"

    filled_voxels: int
    total_voxels: int


class TileParked(Event):
    """A message was parked: the reason in short and in full, when and by which consumer."""

    event: ClassVar[str] = "tile.parked"

    store: str
    reason: str
    detail: str
    parked_ms: int
    parked_by: str
    parking_id: str
    message_id: str | None = None

    @property
    def routing_key(self) -> str:
        """The event and the parked message's routing key."""
        return self.routing_key_of(self.store)

    @property
    def identity(self) -> str | None:
        """The id of its parking."""
        return self.parking_id
