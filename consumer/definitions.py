"""The topology as a document that RabbitMQ imports (`rabbitmqctl import_definitions`)."""

import re
from typing import Any

from consumer.events import completions_queue
from consumer.topology import Binding, Exchange, Queue, Topology

# No password lets them in until somebody gives one: rabbitmqctl change_password.
CONSUMER, PRODUCER, OPERATOR, MONITOR = (
    "tiles-consumer",
    "tiles-producer",
    "tiles-operator",
    "tiles-monitor",
)
_NOTHING = "^$"


def definitions(wanted: Topology, virtual_host: str) -> dict[str, Any]:
    """Return the document: things, bindings in their order, and users with few rights."""
    return {
        "vhosts": [{"name": virtual_host}],
        "users": [_user(CONSUMER), _user(PRODUCER), _user(OPERATOR), _user(MONITOR, "monitoring")],
        "permissions": [
            {"user": user, "vhost": virtual_host} | rights
            for user, rights in _rights(wanted).items()
        ],
        "exchanges": [_exchange(each, virtual_host) for each in wanted.exchanges],
        "queues": [_queue(each, virtual_host) for each in wanted.queues],
        "bindings": [_binding(each, virtual_host) for each in wanted.bindings],
    }


def _user(name: str, tags: str = "") -> dict[str, Any]:
    return {
        "name": name,
        "password_hash": "",
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": tags,
    }


def _rights(wanted: Topology) -> dict[str, dict[str, str]]:
    tiles, events = re.escape(wanted.tiles.name), re.escape(wanted.events.name)
    parking = re.escape(wanted.parking.name)
    # Each producer declares a queue of its own, with a random name.
    heard = f"{re.escape(completions_queue(wanted.tiles.name))}\\."
    # To look whether a thing is there takes a right to it since RabbitMQ 4.3: of those that are not
    # needed for more than that, what hands out no message, and takes none.
    written = f"^({parking}|{events}|{re.escape(wanted.parked.name)})$"
    # Exchanges and queues of any number of partitions: so another needs no other rights.
    read = rf"^{tiles}(\.(00|[0-9]+(\.[0-9]+)?))?$"
    return {
        CONSUMER: _may(write=written, read=read),
        PRODUCER: _may(
            configure=f"^{heard}", write=f"^({tiles}$|{heard})", read=f"^({events}$|{heard})"
        ),
        OPERATOR: _may(*[rf"^{tiles}(\.|$)"] * 3),
        # Its tag is for the management API, which asks for a user of the virtual host.
        MONITOR: _may(),
    }


def _may(configure: str = _NOTHING, write: str = _NOTHING, read: str = _NOTHING) -> dict[str, str]:
    return {"configure": configure, "write": write, "read": read}


def _exchange(exchange: Exchange, virtual_host: str) -> dict[str, Any]:
    return {
        "name": exchange.name,
        "vhost": virtual_host,
        "type": exchange.type,
        "durable": True,
        "auto_delete": False,
        "internal": False,
        "arguments": {},
    }


def _queue(queue: Queue, virtual_host: str) -> dict[str, Any]:
    return {
        "name": queue.name,
        "vhost": virtual_host,
        "durable": True,
        "auto_delete": False,
        "arguments": queue.arguments,
    }


def _binding(binding: Binding, virtual_host: str) -> dict[str, Any]:
    return {
        "source": binding.source,
        "vhost": virtual_host,
        "destination": binding.destination,
        "destination_type": "exchange" if binding.to_exchange else "queue",
        "routing_key": binding.routing_key,
        "arguments": {},
    }
