"""Where settings come from, what is refused at start, and that the password never shows."""

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from consumer.endpoint import address
from consumer.errors import UnusableSettings
from consumer.settings import ENV_PREFIX, Settings, load

SECRET = "hunter2-hunter2"
Load = Callable[..., Settings]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return `load` of flags, environment, secrets and TOML, with an output root unless told."""
    for name in [name for name in os.environ if name.upper().startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)

    def give(
        *flags: str,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        toml: str | None = None,
        root: str | None = "out",
    ) -> Settings:
        arguments = list(flags)
        for name, value in (env or {}).items():
            monkeypatch.setenv(f"{ENV_PREFIX}{name.upper()}", value)
        if secrets is not None:
            folder = tmp_path / "secrets"
            folder.mkdir()
            for name, value in secrets.items():
                (folder / f"tiles_{name}").write_text(value)
            arguments += ["--secrets-folder", str(folder)]
        if toml is not None:
            file = tmp_path / "consumer.toml"
            file.write_text(toml)
            arguments += ["--config-file", str(file)]
        if root is not None:
            arguments += ["--output-root", root]
        return load(arguments)

    return give


def _refusal(give: Callable[[], object]) -> str:
    with pytest.raises(UnusableSettings) as caught:
        give()
    return str(caught.value)


# --- Sources

SOURCES: dict[str, dict[str, Any]] = {
    "flags": {"flags": ["--workers", "11"]},
    "environment": {"env": {"workers": "12"}},
    "secrets folder": {"secrets": {"workers": "13"}},
    "file": {"toml": "workers = 14"},
}


def _from(loaded: Load, sources: Sequence[Mapping[str, Any]]) -> Settings:
    given = {key: value for source in sources for key, value in source.items()}
    return loaded(*given.pop("flags", []), **given)


@pytest.mark.parametrize("source", SOURCES)
def test_a_setting_may_come_from(source: str, loaded: Load) -> None:
    wanted = 11 + list(SOURCES).index(source)

    assert _from(loaded, [SOURCES[source]]).workers == wanted


@pytest.mark.parametrize(
    ("higher", "lower"),
    [(a, b) for i, a in enumerate(SOURCES) for b in list(SOURCES)[i + 1 :]],
)
def test_the_first_of_two_sources_wins(higher: str, lower: str, loaded: Load) -> None:
    wanted = 11 + list(SOURCES).index(higher)

    assert _from(loaded, [SOURCES[higher], SOURCES[lower]]).workers == wanted


def test_a_setting_from_no_source_has_its_default(loaded: Load) -> None:
    assert loaded().prefetch_count == 1000


def test_different_settings_may_come_from_different_sources(loaded: Load) -> None:
    settings = loaded("--workers", "3", env={"prefetch_count": "5"}, toml="http_port = 9000")

    assert (settings.workers, settings.prefetch_count, settings.http_port) == (3, 5, 9000)


def test_the_file_may_be_named_in_the_environment(loaded: Load, tmp_path: Path) -> None:
    file = tmp_path / "named.toml"
    file.write_text("workers = 7")

    assert loaded(env={"config_file": str(file)}).workers == 7


def test_the_secrets_folder_may_be_named_in_the_environment(loaded: Load, tmp_path: Path) -> None:
    (tmp_path / "tiles_password").write_text(SECRET)

    settings = loaded(env={"secrets_folder": str(tmp_path)})

    assert settings.password.get_secret_value() == SECRET


def test_the_flag_for_the_file_wins_over_the_environment(loaded: Load, tmp_path: Path) -> None:
    file = tmp_path / "named.toml"
    file.write_text("workers = 7")

    assert loaded(env={"config_file": str(file)}, toml="workers = 8").workers == 8


def test_a_newline_after_a_secret_is_not_part_of_it(loaded: Load) -> None:
    settings = loaded(secrets={"password": f"{SECRET}\n"})

    assert settings.password.get_secret_value() == SECRET


def test_a_secrets_folder_named_in_the_file_is_read_or_refused(
    loaded: Load, tmp_path: Path
) -> None:
    (tmp_path / "tiles_password").write_text(SECRET)
    try:
        settings = loaded(toml=f'secrets_folder = "{tmp_path}"')
    except UnusableSettings:
        return

    assert settings.password.get_secret_value() == SECRET


@pytest.mark.parametrize(("flag", "tls"), [("--tls", True), ("--no-tls", False)])
def test_a_flag_may_be_given_without_a_value(flag: str, tls: bool, loaded: Load) -> None:
    assert loaded(flag).tls is tls


def test_settings_cannot_be_changed(loaded: Load) -> None:
    settings = loaded()

    with pytest.raises(ValueError, match="frozen"):
        settings.workers = 5  # type: ignore[misc]  # what mypy finds is what is tested


# --- Values

SIZES = {
    "bytes": ("268435456", 256 << 20),
    "binary unit": ("256MiB", 256 << 20),
    "space before the unit": ("256 MiB", 256 << 20),
    "lower case": ("256mib", 256 << 20),
    "decimal unit": ("300MB", 300 * 10**6),
    "fraction": ("0.25GiB", 256 << 20),
}


@pytest.mark.parametrize(("text", "size"), SIZES.values(), ids=SIZES)
def test_a_size_may_have_a_unit(text: str, size: int, loaded: Load) -> None:
    settings = loaded("--scratch-bytes", "64GiB", "--memory-budget-bytes", text)

    assert settings.memory_budget_bytes == size


@pytest.mark.parametrize(
    ("text", "mode"),
    [("0644", 0o644), ("0o640", 0o640), ("00777", 0o777)],
)
def test_a_mode_is_octal_where_it_has_a_leading_zero(text: str, mode: int, loaded: Load) -> None:
    assert loaded(env={"file_mode": text}).file_mode == mode


def test_a_mode_in_the_file_may_be_octal(loaded: Load) -> None:
    assert loaded(toml="folder_mode = 0o750").folder_mode == 0o750


HOSTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "one flag": ({"flags": ["--hosts", "a:1,b"]}, ("a:1", "b")),
    "two flags": ({"flags": ["--hosts", "a:1", "--hosts", "b"]}, ("a:1", "b")),
    "environment": ({"env": {"hosts": "a:1,b"}}, ("a:1", "b")),
    "environment with spaces": ({"env": {"hosts": " a:1 , b "}}, ("a:1", "b")),
    "secret": ({"secrets": {"hosts": "a:1,b"}}, ("a:1", "b")),
    "list in the file": ({"toml": 'hosts = ["a:1", "b"]'}, ("a:1", "b")),
    "text in the file": ({"toml": 'hosts = "a:1,b"'}, ("a:1", "b")),
    "IPv6": ({"env": {"hosts": "[::1]:5672,[fe80::1]"}}, ("[::1]:5672", "[fe80::1]")),
}


@pytest.mark.parametrize(("sources", "hosts"), HOSTS.values(), ids=HOSTS)
def test_hosts_are_listed(sources: dict[str, Any], hosts: tuple[str, ...], loaded: Load) -> None:
    assert _from(loaded, [sources]).hosts == hosts


ADDRESSES = {
    "rabbit": ("rabbit", None),
    "rabbit:5672": ("rabbit", 5672),
    "rabbit-0.rabbit.svc.cluster.local:5671": ("rabbit-0.rabbit.svc.cluster.local", 5671),
    "10.0.0.1": ("10.0.0.1", None),
    "10.0.0.1:1": ("10.0.0.1", 1),
    "10.0.0.1:65535": ("10.0.0.1", 65535),
    "[::1]": ("::1", None),
    "[::1]:5672": ("::1", 5672),
    "[fe80::1%eth0]:5672": ("fe80::1%eth0", 5672),
}
BAD_ADDRESSES = [
    "",
    ":",
    ":5672",
    "rabbit:amqp",
    "rabbit:-1",
    "rabbit:5672:5672",
    "amqp://rabbit:5672",
    "amqp://rabbit",
    "::1",
    "fe80::1",
    "[::1",
    "::1]",
    "[]",
    "[]:5672",
    "]:5672",
    "[::1]x:5672",
    "[rabbit:5672",
    "rabbit:0",
    "rabbit:65536",
    "rab bit",
    "guest@rabbit",
    "rabbit/vhost",
]


@pytest.mark.parametrize(("host", "parts"), ADDRESSES.items(), ids=ADDRESSES)
def test_an_address_is_a_name_and_a_port(host: str, parts: tuple[str, int | None]) -> None:
    assert address(host) == parts


@pytest.mark.parametrize("host", BAD_ADDRESSES, ids=repr)
def test_what_is_no_address_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="is not host or host:port"):
        address(host)


# --- What is refused

# What is given, and the setting that the line names.
IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "no output root": ({"root": None}, "output_root"),
    "empty output root": ({"root": None, "env": {"output_root": ""}}, "output_root"),
    "unknown setting in the file": ({"toml": "prefetch = 5"}, "prefetch"),
    "table in the file": ({"toml": "[broker]\nhosts = 'a'"}, "broker"),
    "newline in a key of the file": ({"toml": '"a\\nb" = 5'}, "b"),
    "file that is no TOML": ({"toml": "workers ="}, "config_file"),
    "file that is missing": ({"env": {"config_file": "/missing.toml"}}, "config_file"),
    "file that is a folder": ({"flags": ["--config-file", "/tmp"]}, "config_file"),
    "secrets folder that is missing": ({"env": {"secrets_folder": "/missing"}}, "secrets_folder"),
    "unknown flag": ({"flags": ["--prefetch", "5"]}, "--prefetch"),
    "flag without its value": ({"flags": ["--workers"]}, "workers"),
    "flag for the file without its value": ({"flags": ["--config-file"], "root": None}, "config"),
    "positional argument": ({"flags": ["out"]}, "out"),
    "value for a switch": ({"flags": ["--tls=maybe"]}, "tls"),
    "number as text": ({"env": {"workers": "many"}}, "workers"),
    "number with a fraction": ({"env": {"workers": "1.5"}}, "workers"),
    "number empty": ({"env": {"workers": ""}}, "workers"),
    "number as a list": ({"toml": "workers = [1]"}, "workers"),
    "no workers": ({"env": {"workers": "0"}}, "workers"),
    "too many workers": ({"env": {"workers": "65"}}, "workers"),
    "no hosts": ({"toml": "hosts = []"}, "hosts"),
    "hosts empty": ({"env": {"hosts": ""}}, "hosts"),
    "hosts end with a comma": ({"env": {"hosts": "a,"}}, "hosts"),
    "hosts as a URL": ({"env": {"hosts": "amqp://a"}}, "hosts"),
    "hosts as JSON": ({"env": {"hosts": '["a"]'}}, "hosts"),
    "hosts with a newline": ({"env": {"hosts": "a\nb:c"}}, "hosts"),
    "hosts as a number": ({"toml": "hosts = 5"}, "hosts"),
    "port too high": ({"env": {"http_port": "65536"}}, "http_port"),
    "port negative": ({"env": {"http_port": "-1"}}, "http_port"),
    "heartbeat off": ({"env": {"heartbeat_s": "0"}}, "heartbeat_s"),
    "prefetch of none": ({"env": {"prefetch_count": "0"}}, "prefetch_count"),
    "prefetch beyond AMQP's": (
        {"env": {"prefetch_count": "65536", "scratch_bytes": "4TiB"}},
        "prefetch_count",
    ),
    "delivery limit that parks innocents": ({"env": {"delivery_limit": "9"}}, "delivery_limit"),
    "size without a number": ({"env": {"scratch_bytes": "GiB"}}, "scratch_bytes"),
    "size of an unknown unit": ({"env": {"scratch_bytes": "5 floppies"}}, "scratch_bytes"),
    "size negative": ({"env": {"scratch_bytes": "-5"}}, "scratch_bytes"),
    "size NaN": ({"env": {"scratch_bytes": "nan"}}, "scratch_bytes"),
    "queue too small": ({"env": {"queue_max_bytes": "1KiB"}}, "queue_max_bytes"),
    "messages too small": ({"env": {"max_message_bytes": "100"}}, "max_message_bytes"),
    "messages beyond RabbitMQ's 512 MiB": (
        {
            "env": {
                "max_message_bytes": "3GiB",
                "memory_budget_bytes": "64GiB",
                "prefetch_count": "1",
            }
        },
        "max_message_bytes",
    ),
    "messages too large for the budget": (
        {"env": {"max_message_bytes": "512MiB", "prefetch_count": "1"}},
        "memory_budget_bytes",
    ),
    "budget too small": ({"env": {"memory_budget_bytes": "1KiB"}}, "memory_budget_bytes"),
    "budget too small for the messages": (
        {"env": {"memory_budget_bytes": "32MiB", "prefetch_count": "1"}},
        "max_message_bytes",
    ),
    "prefetch beyond budget and scratch": ({"env": {"prefetch_count": "65535"}}, "prefetch_count"),
    "scratch too small for the prefetch": (
        {"env": {"scratch_bytes": "0", "prefetch_count": "1000"}},
        "scratch_bytes",
    ),
    "prefetch too large for so many partitions": (
        {"env": {"partitions": "2", "prefetch_count": "1000"}},
        "partitions",
    ),
    "no partition": ({"env": {"partitions": "0"}}, "partitions"),
    "more partitions than there may be": ({"env": {"partitions": "257"}}, "partitions"),
    "replica below 0": ({"env": {"replica": "-1"}}, "replica"),
    "age at a third of the timeout": ({"env": {"max_age_s": "600"}}, "max_age_s"),
    "timeout at three times the age": (
        {"env": {"consumer_timeout_s": "900"}},
        "consumer_timeout_s",
    ),
    "age zero": ({"env": {"max_age_s": "0"}}, "max_age_s"),
    "age NaN": ({"env": {"max_age_s": "nan"}}, "max_age_s"),
    "age infinite": ({"env": {"max_age_s": "inf"}}, "max_age_s"),
    "idle negative": ({"env": {"idle_s": "-1"}}, "idle_s"),
    "retry infinite": ({"env": {"retry_max_s": "inf"}}, "retry_max_s"),
    "grace infinite": ({"env": {"grace_s": "inf"}}, "grace_s"),
    "probe interval infinite": ({"env": {"probe_interval_s": "inf"}}, "probe_interval_s"),
    "first wait longer than the longest": (
        {"env": {"reconnect_min_s": "50", "reconnect_max_s": "5"}},
        "reconnect_min_s",
    ),
    "certificate without its key": (
        {"env": {"tls": "true", "tls_certificate_file": "/c.pem"}},
        "tls_key_file",
    ),
    "key without its certificate": (
        {"env": {"tls": "true", "tls_key_file": "/k.pem"}},
        "tls_certificate_file",
    ),
    "authorities without TLS": ({"env": {"tls_ca_file": "/ca.pem"}}, "tls_ca_file"),
    "certificate without TLS": (
        {"env": {"tls_certificate_file": "/c.pem", "tls_key_file": "/k.pem"}},
        "tls_certificate_file",
    ),
    "mode above 0777": ({"env": {"file_mode": "01777"}}, "file_mode"),
    "mode without its leading zero": ({"env": {"file_mode": "440"}}, "file_mode"),
    "mode without its leading zero, too large": ({"env": {"file_mode": "644"}}, "file_mode"),
    "mode with a nine": ({"env": {"file_mode": "0649"}}, "file_mode"),
    "mode in hexadecimal": ({"env": {"file_mode": "0x1a4"}}, "file_mode"),
    "mode in letters": ({"env": {"file_mode": "rw-r--r--"}}, "file_mode"),
    "files that their owner cannot read": ({"env": {"file_mode": "0044"}}, "file_mode"),
    "folders that their owner cannot enter": ({"env": {"folder_mode": "0655"}}, "folder_mode"),
    "folders that their owner cannot write": ({"env": {"folder_mode": "0555"}}, "folder_mode"),
    "log level in lower case": ({"env": {"log_level": "info"}}, "log_level"),
    "log level with a newline": ({"env": {"log_level": "INFO\nx"}}, "log_level"),
    "log format unknown": ({"env": {"log_format": "xml"}}, "log_format"),
    "prefix empty": ({"env": {"topology_prefix": ""}}, "topology_prefix"),
    "prefix too long": ({"env": {"topology_prefix": "x" * 65}}, "topology_prefix"),
    "prefix that RabbitMQ reserves": ({"env": {"topology_prefix": "amq"}}, "topology_prefix"),
    "consumer's name too long": ({"env": {"consumer_name": "x" * 129}}, "consumer_name"),
    "consumer's name too long for a consumer tag": (
        {"env": {"consumer_name": "é" * 128}},
        "consumer_name",
    ),
}


def _given(loaded: Load, given: Mapping[str, Any]) -> Settings:
    rest = dict(given)
    return loaded(*rest.pop("flags", []), **rest)


@pytest.mark.parametrize(("given", "name"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_the_impossible_is_refused_with_the_settings_name(
    given: dict[str, Any], name: str, loaded: Load
) -> None:
    assert name in _refusal(lambda: _given(loaded, given))


@pytest.mark.parametrize("given", [given for given, _ in IMPOSSIBLE.values()], ids=IMPOSSIBLE)
def test_the_impossible_is_refused_in_one_line(given: dict[str, Any], loaded: Load) -> None:
    assert len(_refusal(lambda: _given(loaded, given)).splitlines()) == 1


def test_what_follows_from_a_wrong_setting_is_not_counted_as_another(loaded: Load) -> None:
    assert "more" not in _refusal(lambda: loaded(env={"max_message_bytes": "large"}))


POSSIBLE: dict[str, dict[str, Any]] = {
    "age just below a third": {"max_age_s": "599"},
    "no scratch with a small prefetch": {"scratch_bytes": "0", "prefetch_count": "10"},
    "any free port": {"http_port": "0"},
    "TLS with nothing of its own": {"tls": "true"},
    "TLS with authorities": {"tls": "true", "tls_ca_file": "/ca.pem"},
    "TLS with a certificate": {
        "tls": "true",
        "tls_certificate_file": "/c.pem",
        "tls_key_file": "/k.pem",
    },
    "private files": {"file_mode": "0600", "folder_mode": "0700"},
    "files that nobody changes": {"file_mode": "0444"},
    "equal waits": {"reconnect_min_s": "5", "reconnect_max_s": "5"},
}


@pytest.mark.parametrize("env", POSSIBLE.values(), ids=POSSIBLE)
def test_the_possible_is_taken(env: dict[str, str], loaded: Load) -> None:
    assert isinstance(loaded(env=env), Settings)


PATHS = ["config_file", "secrets_folder", "username_file", "password_file", "tls_ca_file"]
PATHS += ["scratch_folder", "output_root"]


@pytest.mark.parametrize("name", PATHS)
def test_an_empty_path_is_never_the_working_folder(name: str, loaded: Load) -> None:
    root = None if name == "output_root" else "out"
    try:
        settings = loaded(env={name: "", "tls": "true"}, root=root)
    except UnusableSettings:
        return

    assert getattr(settings, name) != Path()


# --- The password

WRONG_BESIDE_THE_PASSWORD: dict[str, dict[str, Any]] = {
    "flag": {"flags": ["--password", SECRET, "--workers", "0"]},
    "environment": {"env": {"password": SECRET, "workers": "0"}},
    "secret": {"secrets": {"password": SECRET}, "env": {"workers": "0"}},
    "file": {"toml": f'password = "{SECRET}"\nworkers = 0'},
    "combination": {"env": {"password": SECRET, "max_age_s": "600"}},
    "missing root": {"env": {"password": SECRET}, "root": None},
    "list": {"toml": f'password = ["{SECRET}"]'},
    "table": {"toml": f'password = {{value = "{SECRET}"}}'},
    "mistyped key of the file": {"toml": f'pasword = "{SECRET}"'},
    "mistyped flag": {"flags": ["--pasword", SECRET]},
    "without quotes": {"toml": f"password = {SECRET}"},
    "in a URL": {"env": {"hosts": f"amqp://guest:{SECRET}@rabbit:5672"}},
    "in a host": {"env": {"hosts": f"guest:{SECRET}@rabbit:5672"}},
}


@pytest.mark.parametrize("given", WRONG_BESIDE_THE_PASSWORD.values(), ids=WRONG_BESIDE_THE_PASSWORD)
def test_a_refusal_never_shows_the_password(given: dict[str, Any], loaded: Load) -> None:
    with pytest.raises(UnusableSettings) as caught:
        _given(loaded, given)

    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_refusal_never_shows_a_password_that_was_given_as_a_number(loaded: Load) -> None:
    assert "8675309" not in _refusal(lambda: loaded(toml="password = 8675309"))


@pytest.mark.parametrize(
    "show",
    [repr, str, lambda settings: settings.model_dump_json(), lambda s: str(s.model_dump())],
    ids=["repr", "str", "JSON", "dump"],
)
def test_settings_never_show_the_password(show: Callable[[Settings], str], loaded: Load) -> None:
    assert SECRET not in show(loaded(env={"password": SECRET}))


def test_the_password_is_there_for_who_asks(loaded: Load) -> None:
    assert loaded(env={"password": SECRET}).password.get_secret_value() == SECRET


# --- The table of settings


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    assert (Settings.model_fields[name].description or "").endswith(".")


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"output_root"}))
def test_every_setting_but_the_output_root_has_a_default(name: str) -> None:
    assert not Settings.model_fields[name].is_required()


def test_the_defaults_fit_together(loaded: Load) -> None:
    assert loaded().output_root == Path("out")


# -- partitions and replicas --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "number"),
    [
        ("tiles-consumer-0", 0),
        ("tiles-consumer-12", 12),
        ("laptop", 0),
        ("node7", 0),
        ("tiles-consumer-7d9f8b6c5-x2x4z", 0),
        ("ip-10-0-0-12345678", 0),
    ],
)
def test_the_replica_is_the_number_that_ends_a_pods_name(
    host: str, number: int, monkeypatch: pytest.MonkeyPatch, loaded: Load
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert loaded().replica == number
    assert loaded(env={"replica": "5"}).replica == 5


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, 1000),
        ({"partitions": "16"}, 64),
        ({"partitions": "16", "max_message_bytes": "1MiB"}, 1000),
        ({"partitions": "16", "prefetch_count": "20"}, 20),
        ({"scratch_bytes": "0"}, 15),
        ({"partitions": "256", "scratch_bytes": "4GiB"}, 1),
    ],
)
def test_so_much_is_held_of_each_partition_that_all_of_it_has_room(
    given: dict[str, str], count: int, loaded: Load
) -> None:
    assert loaded(env=given).prefetch_count == count


@pytest.mark.parametrize("field", ["delivery_limit", "queue_max_bytes"])
def test_what_amqp_cannot_carry_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}"):
        Settings.model_validate({"output_root": "/output", field: 1 << 63})
