"""Which server a client talks to, and what it shows: arguments, the environment, profiles, and where a token may go."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from children import completed
from tdreplay.environment import CLIENT_SETTINGS, environment_name, unknown_names
from tdreplay.errors import InvalidArgumentError
from tdreplay_client import TLS, RemoteReplayBuffer, ReplayDataset
from tdreplay_client.transport.access import Access
from tdreplay_client.transport.addresses import stays_here
from tdreplay_client.transport.targets import found_access, found_target
from tdreplay_server import ServerConfig

PROFILES = """
[lab]
address = "replay.example:50051"
ca_file = "ca.pem"
token = "tdr_of-lab"

[profiles.mtls]
address = "replay.example:50052"
cert_file = "/certificates/me.pem"
key_file = "/certificates/me.key"
server_name = "replay"

[plain]
address = "127.0.0.1:50053"
tls = false
token_file = "token"
"""


@pytest.fixture
def profiles(tmp_path, monkeypatch) -> Path:
    """The file of profiles that the environment names; nothing else is set."""
    for setting in CLIENT_SETTINGS:
        monkeypatch.delenv(environment_name(setting), raising=False)
    file = tmp_path / "profiles.toml"
    file.write_text(PROFILES)
    file.chmod(0o600)
    (tmp_path / "token").write_text("tdr_of-the-file\n")
    monkeypatch.setenv("TDREPLAY_PROFILES", str(file))
    return file


def test_a_profile_says_what_nobody_else_does(profiles):
    lab = found_target(None, profile="lab")
    assert lab == ("replay.example:50051", Access(TLS(ca_file=str(profiles.parent / "ca.pem")), "tdr_of-lab"))
    mtls = found_target(None, profile="mtls").access
    assert mtls.tls == TLS(cert_file="/certificates/me.pem", key_file="/certificates/me.key", server_name="replay")
    plain = found_target(None, profile="plain")
    assert (plain.address, plain.access.tls, plain.access.token) == ("127.0.0.1:50053", None, "tdr_of-the-file")


def test_the_environment_names_a_profile(profiles, monkeypatch):
    monkeypatch.setenv("TDREPLAY_PROFILE", "lab")
    assert found_target(None).address == "replay.example:50051"
    assert found_target(None, profile="plain").address == "127.0.0.1:50053"


def test_an_argument_overrides_the_environment_and_that_overrides_the_profile(profiles, monkeypatch):
    monkeypatch.setenv("TDREPLAY_ADDRESS", "other.example:1")
    monkeypatch.setenv("TDREPLAY_CA_FILE", "/of/the/environment.pem")
    monkeypatch.setenv("TDREPLAY_TOKEN_FILE", str(profiles.parent / "token"))
    monkeypatch.setenv("TDREPLAY_SERVER_NAME", "other")
    said = found_target(None, profile="lab")
    assert (said.address, said.access.token) == ("other.example:1", "tdr_of-the-file")
    assert said.access.tls == TLS(ca_file="/of/the/environment.pem", server_name="other")
    given = found_target("third.example:1", TLS(ca_file="mine.pem"), "tdr_mine", "lab")
    assert given == ("third.example:1", Access(TLS(ca_file="mine.pem"), "tdr_mine"))
    assert found_access("third.example:1", token="", tls=False, profile="lab") == Access()


@pytest.mark.parametrize(("text", "on"), [("true", True), ("1", True), ("False", False), ("0", False), ("", None)])
def test_the_environment_switches_tls(profiles, monkeypatch, text, on):
    monkeypatch.setenv("TDREPLAY_TLS", text)
    assert found_access("127.0.0.1:1").tls == (TLS() if on else None)
    assert (found_access("127.0.0.1:1", profile="lab").tls is None) is (on is False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[lab]", "[other]"), "there is no profile 'lab': it has 'mtls', 'other', 'plain'"),
        (("ca_file", "cafile"), "line 4: profile 'lab': cafile is not a setting: ca_file is"),
        (("ca_file", "colour"), "line 4: profile 'lab': colour is not a setting: these are: address, tls"),
        (('"ca.pem"', "7"), "line 4: profile 'lab': ca_file must be a text that is not empty"),
        (('ca_file = "ca.pem"', 'tls = "yes"'), "line 4: profile 'lab': tls must be true or false"),
        (("ca_file", "token_file"), "line 4: profile 'lab' has a token and a token_file"),
        (('"ca.pem"', '"ca.pem'), "line 4: "),
        (('"replay.example:50051"', '"replay.example"'), "must be HOST:PORT"),
        (("tdr_of-lab", "tdr of lab"), "token holds no token"),
    ],
)
def test_a_profile_that_breaks_a_rule_is_one_line_that_says_where(profiles, change, words):
    profiles.write_text(PROFILES.replace(*change))
    with pytest.raises(InvalidArgumentError) as raised:
        found_target(None, profile="lab")
    text = str(raised.value)
    assert words in text
    assert "\n" not in text
    assert "tdr" not in text


def test_a_file_that_is_not_there_or_cannot_be_read_is_named(profiles, monkeypatch):
    (profiles.parent / "token").unlink()
    with pytest.raises(InvalidArgumentError, match=r"token_file \(.*token\) cannot be read: No such file"):
        found_target(None, profile="plain")
    monkeypatch.setenv("TDREPLAY_PROFILES", "/not/there.toml")
    with pytest.raises(InvalidArgumentError, match=r"profiles \(/not/there.toml\) is not a file"):
        found_target(None, profile="plain")


def test_a_file_with_a_token_that_others_can_read_is_refused(profiles):
    profiles.chmod(0o640)
    with pytest.raises(InvalidArgumentError, match=r"chmod 600 .*profiles.toml"):
        found_target(None, profile="plain")
    profiles.write_text(PROFILES.replace('token = "tdr_of-lab"', ""))
    assert found_target(None, profile="plain").access.token == "tdr_of-the-file"


@pytest.mark.parametrize(("variables", "words"), [({"TDREPLAY_TLS": "maybe"}, "TDREPLAY_TLS"), ({"TDREPLAY_TOKEN": "a b"}, "token holds no token")])
def test_a_variable_that_breaks_a_rule_is_named(profiles, monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidArgumentError, match=words):
        found_target("127.0.0.1:1")


def test_two_tokens_of_the_environment_are_one_too_many(profiles, monkeypatch):
    monkeypatch.setenv("TDREPLAY_TOKEN", "tdr_one")
    monkeypatch.setenv("TDREPLAY_TOKEN_FILE", "two")
    with pytest.raises(InvalidArgumentError, match="both set"):
        found_target("127.0.0.1:1")


def test_without_an_address_the_error_says_where_one_may_stand(profiles):
    with pytest.raises(InvalidArgumentError, match="TDREPLAY_ADDRESS"):
        RemoteReplayBuffer()


HERE = [
    "127.0.0.1:1",
    "127.9.9.9:1",
    "[::1]:1",
    "localhost:1",
    "LOCALHOST.:1",
    "dns:///localhost:1",
    "dns:localhost:1",
    "ipv4:127.0.0.1:1,127.0.0.2:2",
    "ipv6:[::1]:1",
    "unix:/tmp/s",
    "unix:///tmp/s",
    "unix:relative",
    "unix-abstract:name",
]
ELSEWHERE = [
    "10.0.0.1:1",
    "example.com:1",
    "localhost.example.com:1",
    "host.localhost:1",
    "dns:///example.com:1",
    "dns://8.8.8.8/localhost:1",
    "DNS://8.8.8.8/localhost:1",
    "ipv4:127.0.0.1:1,10.0.0.1:2",
    "ipv4:10.0.0.1:2,127.0.0.1:1",
    "ipv6:[::1]:1,[2001:db8::1]:1",
    "0.0.0.0:1",
    "[::]:1",
    "127.0.0.1.example.com:1",
    "2130706433:1",
    "[::ffff:10.0.0.1]:1",
]


@pytest.mark.parametrize("address", HERE)
def test_a_token_without_tls_goes_to_this_host(profiles, address):
    assert stays_here(address)
    assert found_access(address, token="tdr_secret").token == "tdr_secret"


@pytest.mark.parametrize("address", ELSEWHERE)
def test_a_token_without_tls_goes_nowhere_else(profiles, monkeypatch, address):
    with pytest.raises(InvalidArgumentError, match="over TLS alone") as raised:
        found_access(address, token="tdr_secret")
    assert "tdr_secret" not in str(raised.value)
    assert found_access(address, tls=True, token="tdr_secret").tls == TLS()
    monkeypatch.setenv("TDREPLAY_TOKEN", "tdr_secret")
    with pytest.raises(InvalidArgumentError, match="over TLS alone"):
        RemoteReplayBuffer.tables(address, timeout=1)


def test_no_text_of_an_access_shows_the_token():
    access = Access(TLS(), "tdr_secret")
    assert "tdr_secret" not in f"{access} {access!r} {[access]}"
    assert pickle.loads(pickle.dumps(access)) == access  # noqa: S301 - its own.


@pytest.mark.parametrize("token", ["with space", "tdr_secret\n", "tdr_sécret", "x" * 5000])
def test_a_token_that_cannot_travel_is_not_shown(token):
    with pytest.raises(InvalidArgumentError) as raised:
        found_access("127.0.0.1:1", token=token)
    assert token.strip() not in str(raised.value)


def test_a_copy_keeps_its_access(address, table, profiles, monkeypatch):
    monkeypatch.setenv("TDREPLAY_TOKEN", "tdr_secret")
    with RemoteReplayBuffer(address, table=table, buffer_size=10, timeout=10) as buffer:
        data = pickle.dumps(buffer)
        dataset = pickle.dumps(ReplayDataset(address, 1))
        monkeypatch.delenv("TDREPLAY_TOKEN")
        assert b"tdr_secret" in data
        assert b"tdr_secret" in dataset
        with pickle.loads(data) as copy:  # noqa: S301 - its own.
            assert copy.size == 0
            assert "tdr_secret" not in repr(copy.__reduce__())


def test_neither_end_takes_the_variables_of_the_other_for_misspelt_ones():
    client = [environment_name(name) for name in CLIENT_SETTINGS]
    server = [environment_name(name) for name in ServerConfig.model_fields]
    assert unknown_names(client, ServerConfig.model_fields) == []
    unknown_names(server, CLIENT_SETTINGS)
    with pytest.raises(InvalidArgumentError, match="TDREPLAY_TOKEN is"):
        unknown_names(["TDREPLAY_TOKN"], CLIENT_SETTINGS)


def test_the_command_takes_a_profile(address, profiles, monkeypatch):
    profiles.write_text(f'[here]\naddress = "{address}"\n[profiles.nowhere]\naddress = "127.0.0.1:1"\n')
    environment = {"TDREPLAY_PROFILES": str(profiles)}
    done = completed("tdreplay", "--profile", "here", "health", **environment)
    assert (done.returncode, done.stdout) == (0, f"{address} SERVING\n")
    assert completed("tdreplay", "table", "list", TDREPLAY_PROFILE="here", **environment).returncode == 0
    assert completed("tdreplay", "--profile", "nowhere", "health", **environment).returncode == 1
    done = completed("tdreplay", "--profile", "lost", "table", "list", **environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no profile 'lost'" in done.stderr
