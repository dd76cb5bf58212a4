"""What a client says of a server to which it gets no encrypted connection: what is wrong, and what to set."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

import pytest
from certificate_files import Certificates

from tdreplay.errors import InvalidArgumentError, ServerUnavailableError, TLSError
from tdreplay_client import TLS, RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def servers(certificates) -> Iterator[dict[str, str]]:
    """The addresses of servers: one that is set up well, and others."""
    good = certificates.pair("localhost")
    settings: dict[str, dict[str, Any]] = {
        "tls": good,
        "named": certificates.pair("replay.example"),
        "expired": certificates.pair("localhost", not_before=LONG_AGO, not_after=LONG_AGO + datetime.timedelta(days=1)),
        "mtls": {**good, "trusted_ca_file": certificates.ca, "client_cert_auth": True},
        "plain": {},
    }
    made = {name: ReplayServer(ServerConfig(address="localhost:0", buffer_size=10, **given)) for name, given in settings.items()}
    try:
        yield {name: f"localhost:{server.start().address.rpartition(':')[2]}" for name, server in made.items()}
    finally:
        for server in made.values():
            server.stop()


def opened(address: str, timeout: float = 30.0, **tls: Any) -> RemoteReplayBuffer:
    return RemoteReplayBuffer(address, timeout=timeout, tls=TLS(**tls) if tls else None)


def test_what_is_set_up_well_works(servers, certificates):
    opened(servers["tls"], ca_file=certificates.ca).close()
    opened(servers["named"], ca_file=certificates.ca, server_name="replay.example").close()
    opened(servers["mtls"], ca_file=certificates.ca, **certificates.pair("me", common_name="learner")).close()


CERTAIN = {
    "an authority that is not the server's": ("tls", "other_ca", "signed by no authority that is trusted here.*TDREPLAY_CA_FILE"),
    "the authorities of the system": ("tls", None, "signed by no authority that is trusted here.*TDREPLAY_CA_FILE"),
    "another name": ("named", "ca", "another name than the address.*TDREPLAY_SERVER_NAME"),
    "a certificate that expired": ("expired", "ca", "has expired: renew it"),
    "a server without TLS": ("plain", "ca", "speaks no TLS there.*TDREPLAY_TLS=false"),
}


@pytest.mark.parametrize("case", CERTAIN)
def test_what_is_certainly_wrong_is_said_at_once(servers, certificates, case):
    where, ca, words = CERTAIN[case]
    with pytest.raises(TLSError, match=words) as raised:  # Long before its timeout.
        RemoteReplayBuffer(servers[where], timeout=600, tls=TLS(ca_file=None if ca is None else getattr(certificates, ca)))
    assert servers[where] in str(raised.value)


def test_where_the_server_hangs_up_the_text_says_what_may_be_behind_it(servers, certificates):
    with pytest.raises(ServerUnavailableError, match="if it speaks TLS, say so: tls=True, TDREPLAY_TLS=true"):
        opened(servers["tls"], timeout=1.5)
    with pytest.raises(ServerUnavailableError, match=r"if it asks for a client's certificate, name one.*TDREPLAY_CLIENT_CERT_FILE"):
        opened(servers["mtls"], timeout=1.5, ca_file=certificates.ca)
    strange = certificates.pair("me", certificates.stranger, common_name="learner")
    with pytest.raises(ServerUnavailableError, match=r"may not trust the client's certificate.*--trusted-ca-file"):
        opened(servers["mtls"], timeout=1.5, ca_file=certificates.ca, **strange)


def test_a_connection_that_worked_waits_for_certificates_to_be_exchanged(tmp_path, certificates):
    """The server comes back with a certificate that the client does not trust, and a moment later with a good one."""
    good, strange = certificates.pair("localhost"), certificates.pair("localhost", certificates.stranger)
    config = ServerConfig(address="localhost:0", data_dir=tmp_path / "data", buffer_size=10)
    with ReplayServer(config.model_copy(update=paths(good))) as server:
        config = config.model_copy(update={"address": f"localhost:{server.address.rpartition(':')[2]}"})
        buffer = opened(config.address, ca_file=certificates.ca)
    with buffer, ThreadPoolExecutor(1) as threads:
        with ReplayServer(config.model_copy(update=paths(strange))):
            asked = threads.submit(lambda: buffer.size)
            with pytest.raises(NotYet):
                asked.result(1.0)
        with ReplayServer(config.model_copy(update=paths(good))):
            assert asked.result(20) == 0


def paths(pair: dict[str, str]) -> dict[str, Path]:
    return {name: Path(value) for name, value in pair.items()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ca_file": "/not/there.pem"}, r"ca_file \(/not/there.pem\) cannot be read: No such file"),
        ({"ca_file": __file__}, r"ca_file \(.*\) has no certificate in PEM"),
        ({"key_file": None}, "cert_file and key_file go together"),
        ({"key_file": "cert"}, "has no private key in PEM"),
    ],
)
def test_files_that_are_none_are_said_before_anything_is_sent(certificates, change, words):
    pair = certificates.pair("me")
    files = {"ca_file": certificates.ca, **pair, **change}
    if files["key_file"] == "cert":
        files["key_file"] = pair["cert_file"]
    with pytest.raises(InvalidArgumentError, match=words):
        opened("localhost:1", **files)
