"""The options of commands that reach RabbitMQ: those of `consumer run`, from the same places."""

import argparse
from collections.abc import Mapping
from typing import Any

from pydantic import ByteSize, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from consumer.settings import Access, TopologySettings, load_access
from consumer.settings import load_topology as _load_topology


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting; what is not given is left to the environment and files."""
    add_group(
        parser,
        "RabbitMQ",
        "Each is also an environment variable: TILES_HOSTS and so on.",
        Access.model_fields,
    )


def add_group(
    parser: argparse.ArgumentParser, title: str, about: str, fields: Mapping[str, FieldInfo]
) -> None:
    """Add a group with an option for each field of the settings."""
    group = parser.add_argument_group(title, about)
    for name, field in fields.items():
        kind: dict[str, Any] = {"metavar": "VALUE"}
        if field.annotation is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        meaning = _meaning(name, field).replace("%", "%%")
        group.add_argument(_flag(name), default=argparse.SUPPRESS, help=meaning, **kind)


def load(options: argparse.Namespace, program: str) -> Access:
    """Return the settings.

    Raises
    ------
    UnusableSettings
        With one line that names the setting and what would be right.
    """
    return load_access(_given(options, Access), program)


def add_topology_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting that decides the topology, and how to reach RabbitMQ."""
    about = "Each is also an environment variable: TILES_PARTITIONS and so on."
    add_group(parser, "RabbitMQ", about, TopologySettings.model_fields)


def load_topology(options: argparse.Namespace, program: str) -> TopologySettings:
    """Return the settings that decide the topology; raises as `load` does."""
    return _load_topology(_given(options, TopologySettings), program)


def _given(options: argparse.Namespace, model: type[Access]) -> list[str]:
    given = {name: value for name, value in vars(options).items() if name in model.model_fields}
    return [_word(name, value) for name, value in given.items()]


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return _flag(name) if value else f"--no{_flag(name)[1:]}"
    return f"{_flag(name)}={value}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _meaning(name: str, field: FieldInfo) -> str:
    meaning = (field.description or "").removesuffix(".")
    if field.is_required():
        return f"{meaning}; required"
    if "default:" in meaning:
        return meaning
    return f"{meaning}; default: {shown_default(name, field.default) or 'none'}"


def shown_default(name: str, default: Any) -> str:
    """Return a setting's default as one would give it; empty where there is none."""
    if default in (None, PydanticUndefined):
        return ""
    if isinstance(default, SecretStr):
        return default.get_secret_value()
    if isinstance(default, ByteSize):
        return default.human_readable(separator=" ").replace(".0 ", " ")
    if isinstance(default, tuple):
        return ",".join(default)
    if isinstance(default, bool):
        return str(default).lower()
    if name.endswith("_mode"):
        default = f"0{default:o}"
    return f"{default:g}" if isinstance(default, float) else str(default)
