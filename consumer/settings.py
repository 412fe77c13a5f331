"""The consumer's settings: one model, read once at start and passed in.

From, in this order: flags, environment (`TILES_…`), secrets folder, file (TOML), defaults.
"""

import argparse
import os
import re
import socket
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSuppress,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from consumer.budget import BODY_SHARE, most_bodies
from consumer.contract import reason_of
from consumer.endpoint import SECRET, Endpoint, Seconds
from consumer.errors import UnusableSettings, without_values
from consumer.failpoints import Failpoints
from consumer.message import MAX_MESSAGE_BYTES

ENV_PREFIX = "TILES_"
# Half of the bodies' share takes the largest body, the other half its decompressed form.
_MESSAGE_SHARE = 2 * BODY_SHARE

# Of each partition, where there is room for so many of the largest.
_PREFETCH = 1000

# A consumer tag has at most 255 bytes; ours ends in nine of its own.
_MAX_NAME_BYTES = 128


Loaded = TypeVar("Loaded", bound="Access")


class Access(Endpoint, BaseSettings):
    """How to reach RabbitMQ: what the commands beside `consumer run` need of the settings."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        enable_decoding=False,  # hosts are separated by commas
    )

    config_file: Path | None = Field(None, description="TOML file with any of these settings.")
    secrets_folder: Path | None = Field(
        None,
        description="Folder with one file for each secret, named like tiles_password; read at "
        "start only, unlike password_file.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Add the TOML file, last."""
        toml = TomlConfigSettingsSource(settings_cls)
        return init_settings, env_settings, file_secret_settings, toml


def ordinal(host: str) -> int:
    """Return the number that ends the name of a StatefulSet's pod; 0 of any other host."""
    found = re.search(r"-(\d{1,6})$", host)
    return int(found[1]) if found else 0


def most_deliveries(given: Mapping[str, Any]) -> int:
    """Return the default of prefetch_count, from the settings that bound it."""
    names = ("memory_budget_bytes", "scratch_bytes", "max_message_bytes")
    fit = most_bodies(*(given[name] for name in names)) // given["partitions"]
    return max(1, min(_PREFETCH, int(fit)))


class TopologySettings(Access):
    """What decides the exchanges and queues; `consumer topology` needs no more."""

    partitions: int = Field(
        1,
        ge=1,
        le=256,
        description="Partition queues; the same for all replicas. More than one need the plugin "
        "rabbitmq_consistent_hash_exchange.",
    )
    delivery_limit: int = Field(
        1000,
        ge=10,
        le=1 << 31,
        description="The queues' delivery-limit, a backstop: deliveries of a message.",
    )
    queue_max_bytes: ByteSize = Field(
        ByteSize(32 << 30),
        ge=1 << 20,
        le=1 << 62,
        description="Each queue's max-length-bytes; beyond it publishers are refused.",
    )


class Settings(TopologySettings):
    """All settings of `consumer run`."""

    model_config = SettingsConfigDict(extra="forbid")

    output_root: Path = Field(description="Folder below which all stores are written.")
    accept_filesystem: str | None = Field(
        None,
        description="Kind of the output root's file system to take though it was never tested, "
        "e.g. nfs4; `consumer doctor` says which it is.",
    )

    declare_topology: bool = Field(
        True, description="Declare exchanges and queues; false: only check that they are there."
    )
    replica: int = Field(
        default_factory=lambda: ordinal(socket.gethostname()),
        ge=0,
        le=999_999,
        description="Which of the replicas this is, from 0: it takes over its share of the "
        "partitions (RabbitMQ 4); default: the number that ends the host's name, else 0.",
    )
    consumer_timeout_s: Seconds = Field(
        1800.0, description="The broker's consumer_timeout, seconds."
    )

    stalled_s: Seconds = Field(
        60.0,
        description="When nothing came for so long and nothing is held, the broker is asked "
        "whether messages wait, seconds.",
    )
    lone_attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="A message is parked when so many consumers were killed while they handled it "
        "alone.",
    )

    max_age_s: Seconds = Field(
        300.0,
        description="A block is written before its oldest delivery is older, seconds; "
        "below a third of consumer_timeout_s.",
    )
    idle_s: Seconds = Field(
        5.0,
        description="An array's blocks are written when no tile came for so long, seconds, or "
        "three times the gap between its tiles if that is longer.",
    )

    on_new_run: Literal["park", "replace"] = Field(
        "park",
        description="What becomes of messages of another run than the one that fills their array: "
        "parked, or the array counts as empty, and tiles of earlier runs are parked from then on.",
    )
    progress_s: Seconds = Field(
        30.0,
        description="So often at most it is announced how far an array has come, seconds.",
    )

    max_message_bytes: ByteSize = Field(
        ByteSize(MAX_MESSAGE_BYTES),
        ge=1 << 10,
        le=512 << 20,
        description="Largest body, as sent and decompressed.",
    )
    memory_budget_bytes: ByteSize = Field(
        ByteSize(1 << 30),
        ge=1 << 20,
        description="Memory for bodies, block buffers and encoding; the two processes "
        "themselves take about 150 MiB more.",
    )
    scratch_bytes: ByteSize = Field(
        ByteSize(16 << 30),
        ge=0,
        description="Disk for bodies beyond the budget, in an unlinked file.",
    )
    prefetch_count: int = Field(
        default_factory=most_deliveries,
        ge=1,
        le=65535,
        description="Deliveries of each partition held at once, unacknowledged; default: 1000, or "
        "as many as partitions, max_message_bytes, memory_budget_bytes and scratch_bytes allow.",
    )
    scratch_folder: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()),
        description="Folder of the scratch file, not a tmpfs; default: the temporary folder.",
    )
    workers: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)),
        ge=1,
        le=64,
        description="Threads of the writer process that read, encode and write; "
        "default: the number of cores.",
    )
    max_open_arrays: int = Field(256, ge=1, description="Array handles kept open.")
    write_empty_chunks: bool = Field(
        True, description="Store blocks that hold nothing but the fill value."
    )
    file_mode: int = Field(0o644, ge=0, le=0o777, description="Mode of files, an integer.")
    folder_mode: int = Field(0o755, ge=0, le=0o777, description="Mode of folders, an integer.")
    retry_max_s: Seconds = Field(
        30.0, description="Longest wait before a failed write is tried again, seconds."
    )
    probe_interval_s: Seconds = Field(
        10.0, description="Time between probe writes of the output root, seconds."
    )
    grace_s: Seconds = Field(
        25.0, description="Time to flush after SIGTERM, seconds; below the pod's."
    )

    http_host: str = Field("0.0.0.0", description="Address of the health and metrics server.")  # noqa: S104 - a pod's probes come from outside it
    http_port: int = Field(
        8080, ge=0, le=65535, description="Port of the health and metrics server; 0: any free one."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe level that is logged."
    )
    log_format: Literal["json", "text"] = Field("json", description="Form of the log lines.")
    consumer_name: str = Field(
        default_factory=socket.gethostname,
        description="Name of this replica in consumer tags and parked messages; default: the host.",
    )
    failpoints: CliSuppress[str] = Field(
        "", description="For tests only: what is to go wrong, as consumer/failpoints.py says."
    )

    @field_validator("accept_filesystem", mode="before")
    @classmethod
    def _no_kind_means_none(cls, value: Any) -> Any:
        return value or None

    @field_validator("output_root", "scratch_folder", mode="before")
    @classmethod
    def _folders_are_named(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("is empty; name a folder")
        return value

    @field_validator("consumer_name")
    @classmethod
    def _name_fits_a_consumer_tag(cls, name: str) -> str:
        if not name or not name.isprintable() or len(name.encode()) > _MAX_NAME_BYTES:
            raise ValueError(f"give 1 to {_MAX_NAME_BYTES} bytes of printable characters")
        return name

    @field_validator("failpoints")
    @classmethod
    def _failpoints_are_known(cls, text: str) -> str:
        Failpoints(text, os.getpid)
        return text

    @field_validator("file_mode", "folder_mode", mode="before")
    @classmethod
    def _modes_are_octal(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if re.fullmatch("0o?[0-7]{3,4}", value) is None:
            raise ValueError("give the mode in octal with a leading zero, e.g. 0640")
        return int(value.replace("o", ""), 8)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.max_age_s >= self.consumer_timeout_s / 3:
            raise ValueError(
                f"max_age_s {self.max_age_s:g} must be below a third of consumer_timeout_s "
                f"{self.consumer_timeout_s:g}, or the broker takes deliveries away while they wait"
            )
        if self.max_message_bytes * _MESSAGE_SHARE > self.memory_budget_bytes:
            raise ValueError(
                f"memory_budget_bytes {self.memory_budget_bytes} must be at least {_MESSAGE_SHARE} "
                f"times max_message_bytes {self.max_message_bytes}"
            )
        wanted = self.partitions * self.prefetch_count
        most = most_bodies(self.memory_budget_bytes, self.scratch_bytes, self.max_message_bytes)
        if wanted > most:
            raise ValueError(
                f"prefetch_count {self.prefetch_count} in each of partitions {self.partitions} "
                f"makes {wanted} messages, and a quarter of memory_budget_bytes "
                f"{self.memory_budget_bytes} with scratch_bytes {self.scratch_bytes} has room for "
                f"{most} of max_message_bytes {self.max_message_bytes}; lower the first two or the "
                "last, or raise the others"
            )
        self._check_modes()
        return self

    def _check_modes(self) -> None:
        for name, needed in (("file_mode", 0o400), ("folder_mode", 0o700)):
            mode = getattr(self, name)
            if mode & needed != needed:
                raise ValueError(f"{name} 0{mode:03o} must let the owner in: at least 0{needed:o}")


def load(arguments: Sequence[str], program: str = "consumer run") -> Settings:
    """Return all settings from flags, environment, secrets folder and file.

    Raises
    ------
    UnusableSettings
        With one line that names the setting and what would be right.
    """
    return _load(Settings, arguments, program)


def load_access(arguments: Sequence[str], program: str) -> Access:
    """Return the settings that reach RabbitMQ; raises as `load` does."""
    return _load(Access, arguments, program)


def load_topology(arguments: Sequence[str], program: str) -> TopologySettings:
    """Return the settings that decide the topology; raises as `load` does."""
    return _load(TopologySettings, arguments, program)


def _load(model: type[Loaded], arguments: Sequence[str], program: str) -> Loaded:
    found = _sources(arguments, program)
    if found.config_file and not Path(found.config_file).is_file():
        raise UnusableSettings(f"config_file: there is no file {found.config_file}")
    if found.secrets_folder and not Path(found.secrets_folder).is_dir():
        raise UnusableSettings(f"secrets_folder: there is no folder {found.secrets_folder}")
    try:
        settings = _from(model, found.config_file, found.secrets_folder, list(arguments), program)
    except ValidationError as error:
        reason = reason_of(error, secret=SECRET)
        raise UnusableSettings(f"{reason}; see {program} --help") from None
    except tomllib.TOMLDecodeError as error:
        raise UnusableSettings(f"config_file {found.config_file} is not TOML: {error}") from None
    except (SettingsError, ValueError, OSError) as error:
        raise UnusableSettings(f"{without_values(str(error))}; see {program} --help") from None
    for name in ("config_file", "secrets_folder"):
        if getattr(settings, name) and not getattr(found, name):
            raise UnusableSettings(f"{name}: name it by flag or environment, not in the file")
    return settings


def _sources(arguments: Sequence[str], program: str) -> argparse.Namespace:
    """Return the file and folder that settings come from, which must be known first."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("CONFIG_FILE", "SECRETS_FOLDER"):
        flag = f"--{name.lower().replace('_', '-')}"
        parser.add_argument(flag, default=os.environ.get(f"{ENV_PREFIX}{name}"))
    try:
        return parser.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise UnusableSettings(f"{error}; see {program} --help") from None


def _from(
    model: type[Loaded],
    config: str | None,
    secrets: str | None,
    arguments: list[str],
    program: str,
) -> Loaded:
    class Sourced(model):  # type: ignore[valid-type, misc]  # its sources are known only now
        model_config = SettingsConfigDict(toml_file=config, secrets_dir=secrets)

    Sourced.__doc__ = model.__doc__
    loaded: Loaded = Sourced(
        _cli_parse_args=arguments,
        _cli_prog_name=program,
        _cli_kebab_case=True,
        _cli_implicit_flags=True,
        _cli_hide_none_type=True,
        _cli_avoid_json=True,
        _cli_exit_on_error=False,
    )
    return loaded
