"""Passwords for the users of RabbitMQ's definitions, and an administrator for the tests."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

ADMINISTRATOR = "guest"
_ALL_RIGHTS = {"configure": ".*", "write": ".*", "read": ".*"}


def with_passwords(document: Mapping[str, Any], passwords: Mapping[str, str]) -> dict[str, Any]:
    """Return the definitions with these users' passwords, and a user that may do all."""
    users = [dict(user) for user in document["users"]]
    by_name = {user["name"]: user for user in users}
    for name, password in passwords.items():
        by_name[name]["password_hash"] = hashed(password)
    administrator = {"password_hash": hashed(ADMINISTRATOR), "tags": "administrator"}
    users.append(users[0] | {"name": ADMINISTRATOR} | administrator)
    rights = {"user": ADMINISTRATOR, "vhost": document["vhosts"][0]["name"]} | _ALL_RIGHTS
    return {**document, "users": users, "permissions": [*document["permissions"], rights]}


def hashed(password: str) -> str:
    """Return a password as RabbitMQ keeps it (rabbit_password_hashing_sha256)."""
    salt = b"salt"
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
