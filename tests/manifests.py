"""The Kubernetes manifests as kustomize renders them, and what validates them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from custom_resources import SCHEMAS

REPOSITORY = Path(__file__).parents[1]
OVERLAYS = ("dev", "production")
# From the oldest that knows all fields to the newest of which the package has schemas.
VERSIONS = ("1.31", kubernetes_validate.latest_version())
NAME = "tile-consumer"

Manifest = dict[str, Any]


def tool(name: str) -> str:
    """Return the path of a program of the extra `dev`, or of the machine."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found = shutil.which(name, path=path)
    if found is not None:
        return found
    missing = f"there is no {name} here; the extra dev installs it on Linux"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@dataclass(frozen=True)
class Rendered:
    """What an overlay becomes."""

    manifests: tuple[Manifest, ...]

    def all(self, kind: str) -> list[Manifest]:
        """Return the manifests of a kind."""
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def one(self, kind: str, name: str) -> Manifest:
        """Return a manifest; its name without the hash that kustomize adds."""
        (found,) = (m for m in self.all(kind) if m["metadata"]["name"].startswith(name))
        return found

    @property
    def pod(self) -> Manifest:
        """The specification of the consumer's pods."""
        return dict(self.one("StatefulSet", NAME)["spec"]["template"]["spec"])

    @property
    def doctor(self) -> Manifest:
        """The specification of the pods that run `consumer doctor`."""
        job = self.one("CronJob", f"{NAME}-doctor")["spec"]["jobTemplate"]
        return dict(job["spec"]["template"]["spec"])

    @property
    def operator(self) -> Manifest:
        """The specification of the pod for operators' commands."""
        return dict(self.one("Deployment", "tile-operator")["spec"]["template"]["spec"])

    @property
    def pods(self) -> list[Manifest]:
        """The specifications of all pods that run our image."""
        has_operator = any(m["metadata"]["name"] == "tile-operator" for m in self.manifests)
        return [self.pod, self.doctor, *([self.operator] if has_operator else [])]

    def environment(self, pod: Manifest) -> dict[str, str]:
        """Return the variables that a pod's container gets."""
        (container,) = pod["containers"]
        variables: dict[str, str] = {}
        for source in container.get("envFrom", []):
            variables |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        return variables | {entry["name"]: entry["value"] for entry in container.get("env", [])}


def render(overlay: str, repository: Path = REPOSITORY) -> Rendered:
    """Return what `kubectl kustomize` makes of an overlay."""
    return rendered_from(repository / "deploy" / "kubernetes" / "overlays" / overlay)


def rendered_from(folder: Path) -> Rendered:
    """Return what `kubectl kustomize` makes of a folder."""
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(folder)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # A field that kustomize does not know any more is a warning only.
    assert done.stderr == "", done.stderr
    return Rendered(tuple(yaml.safe_load_all(done.stdout)))


def faults(manifests: Sequence[Manifest], version: str, folder: Path) -> list[str]:
    """Return what is wrong with manifests, Kubernetes' own and the custom ones."""
    custom = [m for m in manifests if _kind(m) in SCHEMAS]
    file = folder / "manifests.yaml"
    own = [manifest for manifest in manifests if manifest not in custom]
    file.write_text(yaml.safe_dump_all(own))
    return [*_faults_of_kubernetes(file, version), *_faults_of_custom(custom)]


def _kind(manifest: Manifest) -> tuple[str, str]:
    return str(manifest.get("apiVersion")), str(manifest.get("kind"))


def _faults_of_kubernetes(file: Path, version: str) -> list[str]:
    command = [tool("kubernetes-validate"), "--strict", "--quiet", "-k", version, str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    said = (done.stdout + done.stderr).splitlines()
    # A kind without a schema is a warning, with exit code 0.
    if done.returncode == 0 and not said:
        return []
    return said or [f"exit code {done.returncode}"]


def _faults_of_custom(manifests: Sequence[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        validator = jsonschema.Draft202012Validator(SCHEMAS[_kind(manifest)])
        for error in validator.iter_errors(manifest):
            yield f"{manifest['kind']}: {error.json_path}: {error.message}"


def copied(manifest: Manifest) -> Manifest:
    """Return a copy to be changed."""
    copy: Manifest = json.loads(json.dumps(manifest))
    return copy
