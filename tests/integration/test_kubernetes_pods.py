"""The image's steps and the pods of both overlays, run without Docker and Kubernetes."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pika
import pytest
import zarr

from certificates import Certificates
from consumer.definitions import CONSUMER, OPERATOR
from consumer.message import encode
from consumer.testing import RabbitMQ, free_port
from credentials import ADMINISTRATOR, with_passwords
from dockerfile import Build, Image, requirements
from harness import voxels, wait_until
from manifests import REPOSITORY, Rendered, render
from pods import Pod, decoded
from sandbox import Sandbox, require_sandbox

pytestmark = pytest.mark.timeout(1200)

USER = 65532
STORE = "plate7/d.zarr"
DEFINITIONS = REPOSITORY / "deploy" / "rabbitmq" / "definitions.json"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The Dockerfile; its stages are made as they are needed."""
    folder = tmp_path_factory.mktemp("build")
    require_sandbox(folder / "trial")
    return Build(REPOSITORY, folder)


@pytest.fixture(scope="module")
def service(build: Build) -> Image:
    """The image of the consumer."""
    return build.image("service")


# --- The image


def _run(image: Image, *argv: str) -> str:
    box = Sandbox(image.tree, image.mounts, user=USER, environment=image.environment)
    return box.run(argv)


def _installed(image: Image) -> set[tuple[str, str]]:
    listing = (
        "import importlib.metadata as m; print([(d.name, d.version) for d in m.distributions()])"
    )
    pairs = re.findall(r"\('([^']+)', '([^']+)'\)", _run(image, "python", "-c", listing))
    return {(re.sub("[-_.]+", "-", name).lower(), version) for name, version in pairs}


def test_the_image_is_made_by_its_steps(service: Image) -> None:
    assert _run(service, *service.entrypoint, "--version").startswith("consumer ")
    assert _run(service, "id", "-u").strip() == service.user.partition(":")[0] == str(USER)


def test_the_image_holds_what_is_pinned_and_nothing_else(service: Image) -> None:
    pinned = set(requirements(REPOSITORY / "deploy" / "requirements.txt"))
    found = {entry for entry in _installed(service) if entry[0] != "zarr-tile-consumer"}
    assert found
    # Markers leave some out, of other platforms.
    assert found <= pinned


def test_the_demos_image_is_made_by_its_steps(build: Build) -> None:
    demo = build.image("demo")
    assert "usage" in _run(demo, *demo.entrypoint, *demo.command)
    written = (REPOSITORY / "Dockerfile").read_text().count("\nRUN ")
    assert len(build.ran) == written


# --- The broker of each overlay


@dataclass
class Site:
    """An overlay's broker, and what its Secret holds."""

    rendered: Rendered
    broker: RabbitMQ
    port: int  # where the consumer connects
    secret: dict[str, str]
    definitions: Path | None = None

    @property
    def parameters(self) -> pika.ConnectionParameters:
        """How an administrator connects, without TLS."""
        user, password = ADMINISTRATOR, ADMINISTRATOR
        if self.definitions is None:
            user, password = self.secret["username"], self.secret["password"]
        credentials = pika.PlainCredentials(user, password)
        return pika.ConnectionParameters("127.0.0.1", self.broker.port, credentials=credentials)

    def change_password(self, password: str) -> None:
        """Change the user's password at the broker, which restarts for it."""
        assert self.definitions is not None
        self.broker.stop()
        self.definitions.write_text(_definitions(self.secret["username"], password))
        self.broker.start()


def _definitions(user: str, password: str) -> str:
    """Return the deployment's own definitions, where consumers and operators have a password."""
    passwords = {user: password, OPERATOR: password}
    return json.dumps(with_passwords(json.loads(DEFINITIONS.read_text()), passwords))


@pytest.fixture(scope="module")
def dev(broker: RabbitMQ, service: Image) -> Iterator[Site]:
    """The overlay for trials, with a broker whose only user is that of its Secret."""
    rendered = render("dev")
    (secret,) = (decoded(manifest) for manifest in rendered.all("Secret"))
    config = f"default_user = {secret['username']}\ndefault_pass = {secret['password']}\n"
    with RabbitMQ(extra_config=config) as running:
        yield Site(rendered, running, running.port, secret)


@pytest.fixture(scope="module")
def production(
    broker: RabbitMQ, service: Image, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The overlay for production: TLS, and the definitions that the guide has imported."""
    folder = tmp_path_factory.mktemp("production")
    rendered = render("production")
    hosts = rendered.environment(rendered.pod)["TILES_HOSTS"].split(",")
    names = ",".join(f"DNS:{host.rpartition(':')[0]}" for host in hosts)
    certificates = Certificates(folder / "ca", names)
    secret = {"username": CONSUMER, "password": "first, word"}
    definitions = folder / "definitions.json"
    definitions.write_text(_definitions(user=secret["username"], password=secret["password"]))
    authority = certificates.authority.read_text()
    port = free_port()
    with RabbitMQ(extra_config=_tls(port, certificates, definitions)) as running:
        yield Site(rendered, running, port, secret | {"ca.crt": authority}, definitions)


def _tls(port: int, certificates: Certificates, definitions: Path) -> str:
    certificate, key = certificates.server
    return (
        f"listeners.ssl.1 = 127.0.0.1:{port}\n"
        f"ssl_options.cacertfile = {certificates.authority}\n"
        f"ssl_options.certfile = {certificate}\n"
        f"ssl_options.keyfile = {key}\n"
        "ssl_options.verify = verify_none\n"
        f"load_definitions = {definitions}\n"
    )


@pytest.fixture(params=["dev", "production"])
def site(request: pytest.FixtureRequest) -> Site:
    """Each overlay in turn."""
    found: Site = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def pod(site: Site, service: Image, tmp_path: Path) -> Iterator[Pod]:
    """The overlay's first pod, not started yet."""
    with_secret = Pod(site.rendered, service, tmp_path, site.port)
    with_secret.give_secret(site.secret)
    yield with_secret
    with_secret.__exit__(None, None, None)


# --- The pods


def _publish(site: Site, number: int) -> Any:
    """Publish an image of one tile as an administrator; return its voxels."""
    tile = voxels((1, 256, 256), array=number)
    fields = {
        "store": STORE,
        "array": f"x{number}",
        "axes": "CYX",
        "shape": [1, 256, 256],
        "tiles": [{"stitch_coords": [0, 0]}],
    }
    message = encode(fields, [tile])
    connection = pika.BlockingConnection(site.parameters)
    channel = connection.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(**message.properties)
    channel.basic_publish("tiles", message.routing_key, message.body, properties, mandatory=True)
    connection.close()
    return tile


def _written(pod: Pod, number: int) -> Any:
    return zarr.open_array(pod.output / STORE / f"x{number}", mode="r")[:]


def test_the_pod_takes_tiles_and_drains(site: Site, pod: Pod) -> None:
    pod.start()
    assert (pod.status("/livez"), pod.status("/readyz")) == (200, 200)
    tile = _publish(site, 0)
    pod.wait_settled(1)
    assert np.array_equal(_written(pod, 0), tile)
    assert {path.stat().st_uid for path in pod.output.rglob("*")} == {USER}
    assert pod.stop() == 0


def test_the_pod_has_no_rights(pod: Pod) -> None:
    pod.start()
    lines = Path(f"/proc/{pod.pid}/status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    assert set(status["Uid"] + status["Gid"]) == {str(USER)}
    assert {int(status[f"Cap{which}"][0], 16) for which in ("Eff", "Prm", "Inh", "Bnd")} == {0}
    assert status["NoNewPrivs"] == ["1"]
    assert pod.stop() == 0


@pytest.mark.parametrize(
    ("file", "permitted"),
    [
        ("/x", False),
        ("/tmp/x", False),
        ("/venv/x", False),
        ("/run/secrets/rabbitmq/x", False),
        ("/output/x", True),
        ("/scratch/x", True),
    ],
)
def test_the_pod_writes_to_its_volumes_only(
    pod: Pod, site: Site, file: str, permitted: bool
) -> None:
    command = pod.command(site.rendered.pod, ["sh", "-c", shlex.join(["touch", file])])
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode == 0) is permitted, done.stderr


def test_the_images_own_health_check_passes_in_the_pod(
    site: Site, pod: Pod, service: Image
) -> None:
    pod.start()
    command = pod.command(site.rendered.pod, service.health)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert pod.stop() == 0
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


def test_the_doctor_finds_all_that_the_pod_needs(site: Site, pod: Pod) -> None:
    if site.rendered.environment(site.rendered.pod)["TILES_DECLARE_TOPOLOGY"] == "true":
        pod.start()
        assert pod.stop() == 0
    command = pod.command(site.rendered.doctor)
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("words", ["parked list", "topology check", "status"])
def test_operators_commands_run_in_their_pod(
    production: Site, service: Image, tmp_path: Path, words: str
) -> None:
    operator = production.rendered.operator
    (container,) = operator["containers"]
    pod = Pod(production.rendered, service, tmp_path, production.port, specification=operator)
    pod.give_secret(production.secret | {"username": OPERATOR})
    assert container["command"] == ["sleep", "infinity"]
    for argv in (["sleep", "0"], [*service.entrypoint, *words.split()]):
        command = pod.command(operator, argv)
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_password_that_changed_needs_no_restart(
    production: Site, service: Image, tmp_path: Path
) -> None:
    pod = Pod(production.rendered, service, tmp_path, production.port, TILES_RECONNECT_MAX_S="2")
    pod.give_secret(production.secret)
    with pod:
        pod.give_secret(production.secret | {"password": "second, word"})
        production.change_password("second, word")
        tile = _publish(production, 1)
        pod.wait_settled(1)
        assert np.array_equal(_written(pod, 1), tile)
        assert pod.stop() == 0
    production.secret["password"] = "second, word"


def test_a_wrong_password_never_gets_ready(
    production: Site, service: Image, tmp_path: Path
) -> None:
    pod = Pod(production.rendered, service, tmp_path, production.port)
    pod.give_secret(production.secret | {"password": "no, word"})
    try:
        pod.start(ready=False)
        wait_until(lambda: "ACCESS_REFUSED" in pod.tail(), lambda: f"a refusal:\n{pod.tail()}")
        assert (pod.status("/livez"), pod.status("/readyz")) == (200, 503)
    finally:
        pod.__exit__(None, None, None)
