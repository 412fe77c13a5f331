"""The options of commands that reach RabbitMQ: those of `consumer run`, from the same places."""

import argparse
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from consumer.settings import Access, load_access


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting; what is not given is left to the environment and files."""
    group = parser.add_argument_group(
        "RabbitMQ", "Each is also an environment variable: TILES_HOSTS and so on."
    )
    for name, field in Access.model_fields.items():
        kind: dict[str, Any] = {"metavar": "VALUE"}
        if field.annotation is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        group.add_argument(
            _flag(name), default=argparse.SUPPRESS, help=_meaning(field).replace("%", "%%"), **kind
        )


def load(options: argparse.Namespace, program: str) -> Access:
    """Return the settings.

    Raises
    ------
    UnusableSettings
        With one line that names the setting and what would be right.
    """
    given = {name: value for name, value in vars(options).items() if name in Access.model_fields}
    return load_access([_word(name, value) for name, value in given.items()], program)


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return _flag(name) if value else f"--no{_flag(name)[1:]}"
    return f"{_flag(name)}={value}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _meaning(field: FieldInfo) -> str:
    default = field.default
    if default is None or isinstance(default, SecretStr | bool):
        return field.description or ""
    shown = ",".join(default) if isinstance(default, tuple) else default
    return f"{field.description} ({shown})"
