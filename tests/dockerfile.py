"""Runs the steps of the Dockerfile without Docker, in a file tree of its own for each stage.

What its base image would bring, Python and a shell, is this machine's: see `sandbox`. A step that
is not known here is an error, so nothing is left out unseen.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from sandbox import Mount, Sandbox

# Where the base image's Python would be.
PYTHON = "/python"
_PATH = f"{PYTHON}/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What says how this machine reaches a package registry.
_REGISTRY = re.compile("PIP_|SSL_CERT_|REQUESTS_CA_|HTTPS?_PROXY|NO_PROXY|ALL_PROXY", re.I)
_WITHOUT_EFFECT = {"LABEL", "EXPOSE"}


@dataclass
class Image:
    """What a stage made: its files, and what a container of it starts with."""

    tree: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"
    # What of this machine a container of it needs.
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile."""

    word: str
    text: str


def steps(dockerfile: str) -> list[Step]:
    """Return the instructions, with continued lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [Step(word, text) for word, text in pairs]


class Build:
    """The stages of a Dockerfile, made below a folder as they are needed."""

    def __init__(self, context: Path, folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._arguments: dict[str, str] = {}
        self._stages: dict[str, tuple[str, list[Step]]] = {}
        self._images: dict[str, Image] = {}
        self.ran: list[str] = []
        self._read(steps((context / "Dockerfile").read_text()))

    def image(self, stage: str) -> Image:
        """Return what a stage makes."""
        if stage not in self._images:
            base, own = self._stages[stage]
            image = self._start(stage, base)
            for step in own:
                self._take(image, step)
            self._images[stage] = image
        return self._images[stage]

    def _read(self, listed: list[Step]) -> None:
        own: list[Step] = []
        for step in listed:
            if step.word == "FROM":
                base, _as, name = step.text.split()
                own = []
                self._stages[name] = (base, own)
            elif step.word == "ARG" and not self._stages:
                name, _, default = step.text.partition("=")
                self._arguments[name] = default
            else:
                own.append(step)

    def _start(self, stage: str, base: str) -> Image:
        tree = self._folder / stage
        if base in self._stages:
            below = self.image(base)
            shutil.copytree(below.tree, tree, symlinks=True)
            return replace(below, tree=tree, environment=dict(below.environment))
        version = re.fullmatch(r"python:(3\.\d+)-slim", _expanded(base, self._arguments))
        assert version is not None, base
        temporary = tree / "tmp"
        temporary.mkdir(parents=True)
        temporary.chmod(0o1777)
        python = find_python(version[1])
        image = Image(tree, {"PATH": _PATH}, mounts=_python_mounts(python))
        self._sandbox(image).run([str(python), "-m", "venv", PYTHON])
        return image

    def _take(self, image: Image, step: Step) -> None:
        text = step.text
        if step.word == "RUN":
            self.ran.append(text)
            self._sandbox(image).run(["sh", "-c", text])
        elif step.word == "COPY":
            self._copy(image, shlex.split(text))
        elif step.word == "ENV":
            pairs = (pair.partition("=") for pair in shlex.split(text))
            values = {name: _expanded(value, image.environment) for name, _, value in pairs}
            image.environment |= values
        elif step.word == "WORKDIR":
            image.folder = text
            (image.tree / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif step.word == "USER":
            image.user = text
        elif step.word == "ENTRYPOINT":
            image.entrypoint, image.command = json.loads(text), []
        elif step.word == "CMD":
            image.command = json.loads(text)
        elif step.word == "HEALTHCHECK":
            image.health = json.loads(text.partition(" CMD ")[2])
        elif step.word == "STOPSIGNAL":
            image.stop_signal = text
        else:
            assert step.word in _WITHOUT_EFFECT, step

    def _copy(self, image: Image, words: list[str]) -> None:
        origin = self._context
        if words[0].startswith("--from="):
            origin = self.image(words.pop(0).partition("=")[2]).tree
        *sources, target = words
        place = image.tree / os.path.join(image.folder, target).lstrip("/")  # noqa: PTH118
        for source in (origin / name.lstrip("/") for name in sources):
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, place, symlinks=True, ignore=ignored, dirs_exist_ok=True)
            else:
                where = place if target.endswith("/") else place.parent
                where.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place)

    def _sandbox(self, image: Image) -> Sandbox:
        """Return where the steps run: as root, with the machine's way to a registry."""
        assert image.user == "0", "a step as another user is not known here"
        registry = {k: v for k, v in os.environ.items() if _REGISTRY.match(k)}
        return Sandbox(
            image.tree,
            [Mount(Path("/etc"), "/etc"), *image.mounts],
            environment=registry | {"HOME": "/tmp"} | image.environment,
            folder=image.folder,
        )


def find_python(version: str) -> Path:
    """Return this machine's Python of a version, e.g. 3.13; skips the test where there is none."""
    places = [shutil.which(f"python{version}")]
    if shutil.which("pyenv"):
        listed = subprocess.run(["pyenv", "root"], check=True, capture_output=True, text=True)
        versions = Path(listed.stdout.strip(), "versions").glob(f"{version}.*")
        places += [str(folder / "bin" / f"python{version}") for folder in versions]
    for place in filter(None, places):
        # pyenv's shim is there but refuses while its version is not the selected one.
        asked = [place, "-c", "import sys, ensurepip; print(sys.base_prefix)"]
        said = subprocess.run(asked, check=False, capture_output=True, text=True)
        if said.returncode == 0:
            return Path(said.stdout.strip(), "bin", f"python{version}")
    pytest.skip(f"there is no Python {version} here, which the image is made for")


def _python_mounts(python: Path) -> tuple[Mount, ...]:
    prefix = python.parents[1]
    return () if prefix.is_relative_to("/usr") else (Mount(prefix, str(prefix)),)


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with $NAME and ${NAME} replaced."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: variables.get(found[1], ""), text)


def container_command(image: Image, arguments: list[str] | None = None) -> list[str]:
    """Return what a container of an image runs, with a pod's `args` in place of its own."""
    return [*image.entrypoint, *(image.command if arguments is None else arguments)]


def requirements(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the packages that a hashed requirements file pins, with their versions."""
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", file.read_text(), re.M):
        yield name.lower(), version
