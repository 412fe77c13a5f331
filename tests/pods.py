"""Runs a pod's container without Kubernetes: image, arguments, environment, files and rights.

What differs from a cluster, all of it in `Pod.environment`: the broker's port and the port of the
probes, since all pods of this machine share its network.
"""

import base64
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from consumer.testing import free_port
from dockerfile import Image, container_command
from harness import ConsumerProcess, wait_until
from manifests import NAME, Manifest, Rendered
from sandbox import Mount, Sandbox


class SecretFiles:
    """The files of a Secret as the kubelet writes them: links, all changed in one step."""

    def __init__(self, folder: Path, group: int, mode: int) -> None:
        self.folder = folder
        self._group, self._mode = group, mode
        self._written = 0
        folder.mkdir()

    def write(self, content: Mapping[str, str]) -> None:
        """Replace all files."""
        self._written += 1
        made = self.folder / f"..{self._written}"
        made.mkdir()
        for name, text in content.items():
            file = made / name
            file.write_text(text)
            file.chmod(self._mode)
            os.chown(file, 0, self._group)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(Path("..data") / name)
        link = self.folder / "..data_tmp"
        link.symlink_to(made.name)
        link.replace(self.folder / "..data")


class Pod(ConsumerProcess):
    """The consumer's pod number 0 of an overlay.

    Parameters
    ----------
    broker_port : int
        Where the broker of the overlay's host listens on this machine.
    specification : manifest, optional
        Of another pod of the overlay.
    **changed : str
        Variables that the test changes.
    """

    def __init__(
        self,
        rendered: Rendered,
        image: Image,
        folder: Path,
        broker_port: int,
        *,
        specification: Manifest | None = None,
        **changed: str,
    ) -> None:
        self.port = free_port()
        self.log = folder / "pod.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._rendered, self._image, self._folder = rendered, image, folder
        self._specification = specification or rendered.pod
        self._context = self._specification["securityContext"]
        self.output = self._owned("output", 0o2775)
        self._scratch = self._owned("scratch", 0o2777)
        self._secrets = SecretFiles(folder / "secret", self._context["fsGroup"], 0o440)
        named = rendered.environment(self._specification)
        self.hosts = [host.rpartition(":")[0] for host in named["TILES_HOSTS"].split(",")]
        self.environment = {
            **image.environment,
            "HOSTNAME": f"{NAME}-0",
            **named,
            "TILES_HOSTS": ",".join(f"{host}:{broker_port}" for host in self.hosts),
            "TILES_HTTP_PORT": str(self.port),
            **changed,
        }

    def give_secret(self, content: Mapping[str, str]) -> None:
        """Write the Secret, or write it anew."""
        self._secrets.write(content)

    def start(self, *, ready: bool = True) -> Self:
        """Start the container, and wait until it is subscribed."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command(self._specification),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Return once the readiness probe passes."""
        wait_until(lambda: self.status("/readyz") == 200, lambda: f"ready:\n{self.tail()}", 120.0)

    def stop(self, timeout_s: float = 120.0) -> int:
        """Send the image's stop signal; return the exit code."""
        self.signal(getattr(signal, self._image.stop_signal))
        assert self.process is not None
        return self.process.wait(timeout_s)

    def command(self, specification: Manifest, argv: Sequence[str] | None = None) -> list[str]:
        """Return the command of a pod's container, or of another program in its place."""
        (container,) = specification["containers"]
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        box = Sandbox(
            self._image.tree,
            [*self._image.mounts, *self._files(), *self._volumes(specification)],
            user=self._context["runAsUser"],
            groups=[self._context["fsGroup"]],
            read_only=context["readOnlyRootFilesystem"],
            host=f"{NAME}-0",
            environment=self.environment,
            folder=self._image.folder,
        )
        return box.command(argv or container_command(self._image, container["args"]))

    def _owned(self, name: str, mode: int) -> Path:
        """Return a volume's folder, as the kubelet leaves it to fsGroup."""
        folder = self._folder / name
        folder.mkdir()
        os.chown(folder, 0, self._context["fsGroup"])
        folder.chmod(mode)
        return folder

    def _volumes(self, specification: Manifest) -> list[Mount]:
        sources = {"output": self.output, "scratch": self._scratch}
        sources["rabbitmq"] = self._secrets.folder
        kinds = {"persistentVolumeClaim": "output", "emptyDir": "scratch", "secret": "rabbitmq"}
        for volume in specification["volumes"]:
            (kind,) = volume.keys() - {"name"}
            assert kinds[kind] == volume["name"]
        (container,) = specification["containers"]
        return [
            Mount(sources[mount["name"]], mount["mountPath"], not mount.get("readOnly", False))
            for mount in container["volumeMounts"]
        ]

    def _files(self) -> list[Mount]:
        """Return the files of /etc that a container has: the host names among them."""
        hosts = self._folder / "hosts"
        hosts.write_text("".join(f"127.0.0.1 {host}\n" for host in ("localhost", *self.hosts)))
        switch = self._folder / "nsswitch.conf"
        switch.write_text("hosts: files\n")
        mounts = [Mount(hosts, "/etc/hosts"), Mount(switch, "/etc/nsswitch.conf")]
        return [*mounts, Mount(Path("/etc/ld.so.cache"), "/etc/ld.so.cache")]


def decoded(secret: Manifest) -> dict[str, str]:
    """Return what a Secret holds."""
    return {name: base64.b64decode(text).decode() for name, text in secret["data"].items()}
