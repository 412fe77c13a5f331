"""Certificates for a broker with TLS, made with OpenSSL."""

import subprocess
from pathlib import Path


class Certificates:
    """A certificate authority, and what it has signed.

    `names` are the server's, as OpenSSL writes them.
    """

    def __init__(self, folder: Path, names: str = "IP:127.0.0.1,DNS:localhost") -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.authority, key = self._pair("authority")
        self._openssl(
            f"req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {self.authority} -days 2 "
            "-subj /CN=authority -addext keyUsage=critical,keyCertSign,cRLSign"
        )
        self.server = self._signed("server", f"subjectAltName={names}")
        self.client = self._signed("client", "extendedKeyUsage=clientAuth")

    def _pair(self, name: str) -> tuple[Path, Path]:
        return self._folder / f"{name}.pem", self._folder / f"{name}-key.pem"

    def _signed(self, name: str, extension: str) -> tuple[Path, Path]:
        certificate, key = self._pair(name)
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        # Without these Python 3.13 refuses it, RFC 5280, 4.2.1.
        extensions.write_text(f"{extension}\nauthorityKeyIdentifier=keyid\n")
        self._openssl(f"req -newkey rsa:2048 -nodes -keyout {key} -out {request} -subj /CN={name}")
        self._openssl(
            f"x509 -req -in {request} -CA {self.authority} -CAkey {self._pair('authority')[1]} "
            f"-CAcreateserial -out {certificate} -days 2 -extfile {extensions}"
        )
        return certificate, key

    def _openssl(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], check=True, capture_output=True)
