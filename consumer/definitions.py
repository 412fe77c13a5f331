"""The topology as a document that RabbitMQ imports (`rabbitmqctl import_definitions`)."""

import re
from typing import Any

from consumer.topology import Binding, Exchange, Queue, Topology

# No password lets them in until somebody gives one: rabbitmqctl change_password.
CONSUMER, PRODUCER = "tiles-consumer", "tiles-producer"


def definitions(wanted: Topology, virtual_host: str) -> dict[str, Any]:
    """Return the document: things, bindings in their order, and users with few rights."""
    return {
        "vhosts": [{"name": virtual_host}],
        "users": [_user(CONSUMER), _user(PRODUCER)],
        "permissions": [
            _permissions(
                CONSUMER,
                virtual_host,
                write=(wanted.parking.name, wanted.events.name),
                read=[queue.name for queue in wanted.partitions],
            ),
            _permissions(PRODUCER, virtual_host, write=(wanted.tiles.name,), read=()),
        ],
        "exchanges": [_exchange(each, virtual_host) for each in wanted.exchanges],
        "queues": [_queue(each, virtual_host) for each in wanted.queues],
        "bindings": [_binding(each, virtual_host) for each in wanted.bindings],
    }


def _user(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "password_hash": "",
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": "",
    }


def _permissions(
    user: str, virtual_host: str, *, write: tuple[str, ...], read: list[str] | tuple[()]
) -> dict[str, str]:
    return {
        "user": user,
        "vhost": virtual_host,
        "configure": "^$",
        "write": _any_of(write),
        "read": _any_of(read),
    }


def _any_of(names: tuple[str, ...] | list[str]) -> str:
    return f"^({'|'.join(re.escape(name) for name in names)})$" if names else "^$"


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
