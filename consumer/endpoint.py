"""Where RabbitMQ is and how to get in: what producers, operators and the consumer have in common.

Plain data. Opening connections is `consumer.connection`'s, reading the environment
`consumer.settings`'.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import unquote

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from consumer.contract import reason_of
from consumer.errors import UnusableSettings

Seconds = Annotated[float, Field(gt=0, le=7 * 86400, allow_inf_nan=False)]
SECRET = ("password", "hosts")
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_URL_FORM = "amqp://user:password@host:port/virtual-host, or amqps:// for TLS"


class Endpoint(BaseModel):
    """RabbitMQ, as one user reaches it."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    hosts: tuple[str, ...] = Field(
        ("localhost:5672",),
        min_length=1,
        description="RabbitMQ nodes, host[:port], separated by commas; tried in random order.",
    )
    virtual_host: str = Field("/", description="RabbitMQ virtual host.")
    username: str = Field("guest", description="RabbitMQ user.")
    password: SecretStr = Field(SecretStr("guest"), description="RabbitMQ password.")
    username_file: Path | None = Field(
        None, description="File with the user, read at each connect; wins over username."
    )
    password_file: Path | None = Field(
        None, description="File with the password, read at each connect; wins over password."
    )
    tls: bool = Field(False, description="Connect with TLS.")
    tls_ca_file: Path | None = Field(
        None, description="PEM file of the certificate authorities to trust; default: the system's."
    )
    tls_certificate_file: Path | None = Field(
        None, description="PEM file of the client certificate."
    )
    tls_key_file: Path | None = Field(None, description="PEM file of the client certificate's key.")
    heartbeat_s: int = Field(60, ge=1, le=3600, description="AMQP heartbeat, seconds.")
    reconnect_min_s: Seconds = Field(
        0.5, description="First wait before connecting again, seconds; doubles."
    )
    reconnect_max_s: Seconds = Field(
        30.0, description="Longest wait before connecting again, seconds."
    )
    topology_prefix: str = Field(
        "tiles",
        max_length=64,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="First part of exchange and queue names.",
    )

    @field_validator("hosts", mode="before")
    @classmethod
    def _hosts_are_listed(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("hosts")
    @classmethod
    def _hosts_have_ports(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            address(host)
        return hosts

    @field_validator("topology_prefix")
    @classmethod
    def _prefix_is_free(cls, prefix: str) -> str:
        if prefix.partition(".")[0] == "amq":
            raise ValueError("RabbitMQ keeps names that start with amq. to itself")
        return prefix

    @field_validator(
        "username_file",
        "password_file",
        "tls_ca_file",
        "tls_certificate_file",
        "tls_key_file",
        mode="before",
    )
    @classmethod
    def _empty_means_none(cls, value: Any) -> Any:
        return None if value == "" else value

    @model_validator(mode="after")
    def _endpoint_fits_together(self) -> Self:
        if self.reconnect_min_s > self.reconnect_max_s:
            raise ValueError(
                f"reconnect_min_s {self.reconnect_min_s:g} is above reconnect_max_s "
                f"{self.reconnect_max_s:g}"
            )
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file go together")
        if not self.tls and (self.tls_ca_file or self.tls_certificate_file):
            raise ValueError("tls_ca_file and tls_certificate_file need tls = true")
        return self


def address(host: str) -> tuple[str, int | None]:
    """Return the name and port of `host[:port]`; an IPv6 address stands in brackets."""
    found = _ADDRESS.fullmatch(host)
    port = int(found[3]) if found and found[3] else None
    if found is None or (port is not None and not 1 <= port <= 65535):
        # What stands before an @ is a user and a password.
        raise ValueError(f"{host.rpartition('@')[2]!r} is not host or host:port")
    return found[1] or found[2], port


def endpoint(broker: str, **named: Any) -> Endpoint:
    """Return the endpoint of `host[:port]`, of several of them, or of an AMQP URL.

    Parameters
    ----------
    broker : str
        `host[:port]`, more of them behind commas, or `amqp[s]://user:password@host:port/vhost`.
    **named
        Fields of `Endpoint`; they win over the URL.

    Raises
    ------
    UnusableSettings
        With the field at fault and no password.
    """
    fields = _from_url(broker) if "://" in broker else {"hosts": broker}
    try:
        return Endpoint.model_validate(fields | named)
    except ValidationError as error:
        raise UnusableSettings(reason_of(error, secret=SECRET)) from None


def _from_url(url: str) -> dict[str, Any]:
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, hosts = authority.rpartition("@")
    if scheme not in {"amqp", "amqps"} or {"@", "?"} & set(path):
        raise UnusableSettings(
            f"broker: the {scheme}:// URL is not {_URL_FORM}; percent-encode what else stands in it"
        )
    fields: dict[str, Any] = {"hosts": hosts, "tls": scheme == "amqps"}
    if at:
        name, colon, password = user.partition(":")
        fields["username"] = unquote(name)
        if colon:
            fields["password"] = unquote(password)
    if slash and path:
        fields["virtual_host"] = unquote(path)
    return fields
