"""S3: beyond this machine only with TLS and a token, or by a decision that is said.

That a public address is refused without either, with exit status 78, is tested where
the process is: `test_serve.py`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from durable_actor.config import HttpConfig
from durable_actor.daemon.tls import make_context
from durable_actor.errors import ConfigError
from tests.durable_actor.daemon.certificates import Certificates
from tests.durable_actor.daemon.process import Daemon
from tests.durable_actor.daemon.raw import end_of, open_raw, statuses_of


def context(certificates: Certificates, *, mutual: bool = False) -> ssl.SSLContext:
    found = make_context(
        HttpConfig(
            tls_certificate_file=str(certificates.server),
            tls_key_file=str(certificates.server_key),
            tls_client_ca_file=str(certificates.client) if mutual else None,
        )
    )
    assert found is not None
    return found


def caller(
    certificates: Certificates, cert: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    trusting = ssl.create_default_context(cafile=str(certificates.server))
    if cert is not None:
        trusting.load_cert_chain(cert, key)
    return trusting


def test_s3_a_public_address_with_tls_is_served_and_still_wants_the_token(
    start_daemon: Callable[..., Daemon],
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        'main = "examples.fixture.app"\n'
        f'http.tls_certificate_file = "{certificates.server}"\n'
        f'http.tls_key_file = "{certificates.server_key}"\n'
    )
    daemon = start_daemon(config=config, listen="0.0.0.0:0").wait_ready()
    port = daemon.url.rpartition(":")[2]
    url = f"https://localhost:{port}"

    with httpx2.Client(verify=caller(certificates), trust_env=False) as http:
        alive = http.get(f"{url}/livez")
        refused = http.get(f"{url}/metrics")
        headers = {"Authorization": f"Bearer {daemon.token}"}
        told = http.get(f"{url}/metrics", headers=headers)
        unnamed = http.get(f"{url}/livez", headers={"Host": f"0.0.0.0:{port}"})

    assert daemon.url == f"https://0.0.0.0:{port}"
    assert alive.status_code == told.status_code == 200
    assert refused.status_code == 401
    assert unnamed.status_code == 403


async def ask(port: int, tls: ssl.SSLContext) -> bytes:
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=tls, server_hostname="localhost"
        )
        writer.write(f"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        answer = await end_of(reader)
        writer.close()
    except OSError:  # a refusal in the handshake
        return b""
    return answer


async def test_s3_without_a_certificate_that_is_vouched_for_nobody_is_heard(
    certificates: Certificates,
) -> None:
    tls = context(certificates, mutual=True)
    async with open_raw(tls=tls, idle_timeout_ms=1) as raw:
        bare = await ask(raw.port, caller(certificates))
        stranger = await ask(
            raw.port,
            caller(certificates, certificates.stranger, certificates.stranger_key),
        )
        known = await ask(
            raw.port, caller(certificates, certificates.client, certificates.client_key)
        )

    assert (statuses_of(bare), statuses_of(stranger)) == ([], [])
    assert statuses_of(known) == [200]


async def test_s3_plain_http_and_old_versions_are_not_spoken_there(
    certificates: Certificates,
) -> None:
    async with open_raw(tls=context(certificates)) as raw:
        assert statuses_of(await raw.send(raw.head(start="GET /livez"))) == []

    assert context(certificates).minimum_version >= ssl.TLSVersion.TLSv1_2


def test_s3_a_key_that_others_may_read_is_refused(
    certificates: Certificates, tmp_path: Path
) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(certificates.server_key.read_bytes())
    key.chmod(0o640)

    with pytest.raises(ConfigError, match="chmod 600"):
        make_context(
            HttpConfig(
                tls_certificate_file=str(certificates.server), tls_key_file=str(key)
            )
        )


@pytest.mark.parametrize(
    "keys",
    [
        {"tls_key_file": "key.pem"},
        {"tls_client_ca_file": "ca.pem"},
        {"tls_certificate_file": "missing.pem"},
        {"tls_certificate_file": "text.pem"},
    ],
)
def test_s3_what_is_no_certificate_is_refused(
    keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    text.chmod(0o600)

    with pytest.raises(ConfigError, match="tls_"):
        make_context(HttpConfig(**keys))  # type: ignore[arg-type]
