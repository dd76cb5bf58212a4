"""What `tdreplay doctor` says of servers that are set up well, and of what is in the way to others."""

from __future__ import annotations

import datetime
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from certificate_files import Certificates

from children import completed
from tdreplay_client.transport.probes import certificate_ends
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.access.roles import Role
from tdreplay_server.access.tokens import Token, Tokens, digest_of, new_secret
from tdreplay_server.access.tokens_file import change_tokens


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> dict[str, Any]:
    """A file of tokens, and the tokens."""
    file, made = tmp_path_factory.mktemp("tokens") / "tokens.json", {}
    now = datetime.datetime.now(datetime.timezone.utc)
    for role in ("learner", "admin"):
        made[role] = new_secret()
        said = {"sha256": digest_of(made[role]).hex(), "name": role, "roles": (Role(role),), "tables": ("*",), "created": now}
        entry = Token.model_validate(said)
        change_tokens(file, lambda tokens, entry=entry: Tokens.with_token(tokens, entry))
    return {"file": file, **made}


@pytest.fixture(scope="module")
def servers(certificates, tokens) -> Iterator[dict[str, str]]:
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=3)
    good = certificates.pair("localhost")
    settings: dict[str, dict[str, Any]] = {
        "plain": {},
        "tls": {**good, "tokens_file": tokens["file"]},
        "soon": certificates.pair("localhost", not_after=soon),
        "mtls": {**good, "trusted_ca_file": certificates.ca, "client_cert_auth": True},
    }
    made = {name: ReplayServer(ServerConfig(address="localhost:0", buffer_size=10, **given)) for name, given in settings.items()}
    try:
        yield {name: f"localhost:{server.start().address.rpartition(':')[2]}" for name, server in made.items()}
    finally:
        for server in made.values():
            server.stop()


def checks(address: str, *options: str, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    done = completed("tdreplay", "doctor", "--json", "--address", address, *options, **environment)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert all(check["fix"] for check in found if check["state"] != "ok")
    return done.returncode, {check["name"]: check for check in found}


def refused(address: str, *options: str, **environment: str) -> tuple[str, str]:
    """The one check that failed, and what it found with what to do."""
    status, found = checks(address, *options, **environment)
    failures = [check for check in found.values() if check["state"] == "failed"]
    assert (status, len(failures)) == (1, 1)
    assert failures[0] == list(found.values())[-1]  # What needs it is not looked at.
    return failures[0]["name"], f"{failures[0]['found']} -> {failures[0]['fix']}"


def test_a_server_that_is_set_up_well_passes(servers, certificates, tokens, tmp_path):
    status, found = checks(servers["plain"], "--data-dir", str(tmp_path))
    assert (status, found["tls"]["found"], found["health"]["found"]) == (0, "neither end speaks TLS", "SERVING")
    assert {"versions", "shared memory", "disk", "open files", "processes", "proxy", "name", "reachable", "token", "transport"} <= found.keys()
    assert "torch" in found["versions"]["found"]
    status, found = checks(servers["tls"], TDREPLAY_CA_FILE=certificates.ca, TDREPLAY_TOKEN=tokens["admin"])
    assert status == 0
    assert found["tls"]["found"].startswith("the server's certificate is valid until ")
    assert "the token is known; it may insert, sample, see the server's status, administrate; tables: default" in found["token"]["found"]
    assert found["server's version"]["state"] == "ok"


def test_a_token_says_its_role_and_its_tables(servers, certificates, tokens):
    status, found = checks(servers["tls"], TDREPLAY_CA_FILE=certificates.ca, TDREPLAY_TOKEN=tokens["learner"])
    assert status == 0
    assert found["token"]["found"] == "the token is known; it may sample; tables: default"
    assert "PermissionDeniedError" in found["server's version"]["found"]


def test_a_token_that_is_missing_or_wrong_is_told(servers, certificates):
    name, text = refused(servers["tls"], TDREPLAY_CA_FILE=certificates.ca)
    assert name == "token"
    assert "a token is asked for, and none is set" in text
    name, text = refused(servers["tls"], TDREPLAY_CA_FILE=certificates.ca, TDREPLAY_TOKEN="tdr_wrong")
    assert name == "token"
    assert "the token is not known" in text
    assert "tdr_wrong" not in text


def test_tls_of_one_end_alone_is_told(servers, certificates):
    name, text = refused(servers["soon"])
    assert (name, "the server speaks TLS, and this client does not" in text, "TDREPLAY_TLS=true" in text) == ("tls", True, True)
    name, text = refused(servers["plain"], TDREPLAY_CA_FILE=certificates.ca)
    assert (name, "this client speaks TLS, and the server does not" in text, "TDREPLAY_TLS=false" in text) == ("tls", True, True)


def test_certificates_that_do_not_fit_are_told(servers, certificates):
    name, text = refused(servers["tls"], TDREPLAY_CA_FILE=certificates.other_ca)
    assert (name, "TDREPLAY_CA_FILE" in text) == ("tls", True)
    name, text = refused(servers["tls"], TDREPLAY_CA_FILE=certificates.ca, TDREPLAY_SERVER_NAME="other.example")
    assert (name, "Hostname mismatch" in text, "TDREPLAY_SERVER_NAME" in text) == ("tls", True, True)
    name, text = refused(servers["mtls"], TDREPLAY_CA_FILE=certificates.ca)
    assert (name, "TDREPLAY_CLIENT_CERT_FILE" in text) == ("tls", True)


def test_certificates_that_end_soon_are_warned_of(servers, certificates):
    ended = certificates.pair("me", not_before=datetime.datetime(2019, 1, 1), not_after=datetime.datetime(2020, 1, 1))
    own = {"TDREPLAY_CLIENT_CERT_FILE": ended["cert_file"], "TDREPLAY_CLIENT_KEY_FILE": ended["key_file"]}
    status, found = checks(servers["soon"], TDREPLAY_CA_FILE=certificates.ca, **own)
    assert (status, found["tls"]["state"]) == (1, "warning")
    assert "3.0 days" in found["tls"]["found"]
    assert (found["own certificate"]["state"], "expired on 2020-01-01" in found["own certificate"]["found"]) == ("failed", True)


def test_a_place_where_nobody_is_is_told(tmp_path):
    assert refused("no-such-host.invalid:1")[0] == "name"
    name, text = refused("127.0.0.1:1")
    assert (name, "refused" in text) == ("reachable", True)
    assert refused(f"unix:{tmp_path}/none")[0] == "reachable"


def test_a_server_that_says_nothing_is_told():
    """It takes the connection, and no more: as a host whose queue is full does."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent, ThreadPoolExecutor(1):
        name, text = refused(f"127.0.0.1:{silent.getsockname()[1]}", "--timeout", "0.5")  # gRPC itself gives up after a second.
    assert (name, "DEADLINE_EXCEEDED" in text) == ("health", True)


def test_settings_that_break_a_rule_are_told(tmp_path):
    name, text = refused("10.0.0.1:1", TDREPLAY_TOKEN="tdr_secret")
    assert (name, "over TLS alone" in text, "tdr_secret" in text) == ("settings", True, False)
    assert refused("127.0.0.1:1", TDREPLAY_PROFILE="lab", TDREPLAY_PROFILES=str(tmp_path / "none"))[0] == "settings"


def test_a_proxy_is_warned_of_where_calls_go_through_it(servers):
    assert checks(servers["plain"], http_proxy="http://127.0.0.1:9")[1]["proxy"]["state"] == "ok"
    assert checks("no-such-host.invalid:1", http_proxy="http://127.0.0.1:9")[1]["proxy"]["state"] == "warning"


def test_people_get_a_line_for_each_check(servers):
    done = completed("tdreplay", "doctor", "--address", servers["plain"])
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if not line.startswith(" ")].count("ok") >= 8


def test_the_end_of_a_certificate_is_read_from_its_bytes(certificates):
    for year in (2031, 2120):  # The two ways to write a time.
        end = datetime.datetime(year, 3, 4, 5, 6, 7, tzinfo=datetime.timezone.utc)
        assert certificate_ends(certificates.pair("me", not_after=end)["cert_file"]) == end
    assert certificate_ends(__file__) is None
