"""Where RabbitMQ is: hosts and URLs, and that no password is told."""

from typing import Any

import pytest

from consumer.endpoint import endpoint
from consumer.errors import UnusableSettings

URLS: dict[str, tuple[str, dict[str, Any]]] = {
    "a host": ("rabbit", {"hosts": ("rabbit",)}),
    "hosts": ("a:1, b", {"hosts": ("a:1", "b")}),
    "a URL": ("amqp://h:1", {"hosts": ("h:1",), "username": "guest", "virtual_host": "/"}),
    "a URL with a slash": ("amqp://h/", {"hosts": ("h",), "virtual_host": "/"}),
    "a user": ("amqp://me:it@h", {"username": "me", "hosts": ("h",)}),
    "a user with an escaped @": ("amqp://me%40x:it@h", {"username": "me@x"}),
    "a virtual host": ("amqp://h/tiles", {"virtual_host": "tiles"}),
    "the virtual host /": ("amqp://h/%2F", {"virtual_host": "/"}),
    "TLS": ("amqps://h", {"tls": True}),
    "IPv6": ("amqp://[::1]:5672", {"hosts": ("[::1]:5672",)}),
}


@pytest.mark.parametrize(("broker", "wanted"), URLS.values(), ids=URLS)
def test_a_broker_is_read(broker: str, wanted: dict[str, Any]) -> None:
    found = endpoint(broker)

    assert {name: getattr(found, name) for name in wanted} == wanted


def test_what_is_named_wins_over_the_url() -> None:
    assert endpoint("amqp://me:it@h", username="you").username == "you"


@pytest.mark.parametrize(
    "broker",
    [
        "http://me:hunter2@h",
        "amqp://me:hun/ter2@h",
        "amqp://me:hunter2@h/?x=1",
        "amqp://me:hunter2@h h",
    ],
    ids=["another scheme", "unescaped", "a query", "no host"],
)
def test_what_is_no_broker_is_refused_without_the_password(broker: str) -> None:
    with pytest.raises(UnusableSettings) as refused:
        endpoint(broker)

    assert "hun" not in str(refused.value)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnusableSettings, match="user: Extra inputs"):
        endpoint("h", user="me")
