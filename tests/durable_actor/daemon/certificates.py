"""Certificates for tests: of a server, of a client, and of a stranger."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """Files; each certificate is its own authority, so it is named as the CA too."""

    server: Path
    server_key: Path
    client: Path
    client_key: Path
    stranger: Path
    stranger_key: Path


def make_certificates(folder: Path) -> Certificates:
    paths = []
    for name in ("server", "client", "stranger"):
        certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
        command = [
            *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ]
        subprocess.run(command, check=True, capture_output=True)
        key.chmod(0o600)
        paths += [certificate, key]
    return Certificates(*paths)
