"""TLS: the daemon's certificate, and, if asked for, those of its clients.

A client certificate is a second lock, not another key: whoever comes without one that
`http.tls_client_ca_file` vouches for gets no connection, and whoever has one still
needs a token.
"""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

from durable_actor.config import HttpConfig
from durable_actor.errors import ConfigError


def make_context(http: HttpConfig) -> ssl.SSLContext | None:
    """Return what connections are wrapped in, or None if they are not.

    Raises:
        ConfigError: A file is missing, is not what it should be, or holds a key that
            others may read.
    """
    certificate, clients = http.tls_certificate_file, http.tls_client_ca_file
    key = http.tls_key_file or certificate
    if certificate is None or key is None:
        if http.tls_key_file is not None or clients is not None:
            message = "http.tls_certificate_file is missing; TLS needs a certificate"
            raise ConfigError(message)
        return None
    _check_private(Path(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An empty password, or OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
        if clients is not None:
            context.load_verify_locations(clients)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # what OpenSSL reports is an OSError
        message = f"the certificates of http.tls_* cannot be used: {error}"
        raise ConfigError(message) from error
    return context


def _check_private(path: Path) -> None:
    try:
        facts = path.stat()
    except OSError as error:
        message = f"http.tls_key_file: {path} cannot be read: {error.strerror}"
        raise ConfigError(message) from error
    if facts.st_mode & 0o077 or facts.st_uid not in (os.geteuid(), 0):
        message = (
            f"the key {path} may be read by others"
            f" (mode {stat.S_IMODE(facts.st_mode):04o}); run: chmod 600 {path}"
        )
        raise ConfigError(message)
