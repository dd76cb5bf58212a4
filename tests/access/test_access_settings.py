"""Settings of access that contradict each other or cannot be used, sockets and folders: each refusal says what to set instead."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import grpc
import pytest
from certificates import Authority
from pydantic import ValidationError

from children import completed, server_process
from tdreplay.addresses import is_loopback
from tdreplay.errors import InvalidArgumentError, ReplayError, ServerUnavailableError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.access.tokens import Tokens
from tdreplay_server.access.tokens_file import change_tokens

EVERYWHERE = "0.0.0.0:0"


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


# -- which settings go together -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "changes", "rule"),
    [
        (["cert_file"], {}, "cert_file and key_file go together"),
        (["key_file"], {}, "cert_file and key_file go together"),
        (["cert_file", "key_file"], {"insecure": True}, "insecure is for servers without TLS"),
        (["cert_file", "key_file"], {"client_cert_auth": True}, "client_cert_auth needs trusted_ca_file"),
        (["cert_file", "key_file", "trusted_ca_file"], {}, "trusted_ca_file is for client_cert_auth"),
        (["trusted_ca_file"], {"client_cert_auth": True}, "client_cert_auth needs TLS"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(authority, names, changes, rule):
    files = {name: authority.mutual[name] for name in names}
    with pytest.raises(ValidationError, match=rule):
        ServerConfig(**files, **changes)


@pytest.mark.parametrize("name", ["address", "metrics_address"])
@pytest.mark.parametrize("address", [EVERYWHERE, "[::]:0", "192.0.2.1:5", "replay.example:5", "localhost.example:5", "[::ffff:192.0.2.1]:5"])
def test_where_others_reach_the_server_it_needs_tls_or_to_be_told(authority, name, address):
    with pytest.raises(ValidationError, match=rf"{name} \({re.escape(address)}\).* set cert_file and key_file for TLS, or insecure"):
        ServerConfig(**{name: address})
    assert getattr(ServerConfig(**{name: address}, insecure=True), name) == address
    assert getattr(ServerConfig(**{name: address}, **authority.server_files), name) == address


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.9.9.9:1", "[::1]:0", "localhost:5", "LOCALHOST:5", "a.localhost:5", "unix:/tmp/x.sock"])
def test_what_only_this_host_reaches_needs_neither(address):
    assert is_loopback(address)
    assert ServerConfig(address=address).address == address


def test_a_server_in_a_process_of_its_own_follows_the_same_rules(authority):
    refused = completed("tdreplay-server", "serve", "--until-stdin-closes", TDREPLAY_ADDRESS=EVERYWHERE)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "set cert_file and key_file for TLS, or insecure" in refused.stderr
    with server_process(ServerConfig(address=EVERYWHERE, **authority.mutual)) as server:
        address = f"127.0.0.1:{server.address.rpartition(':')[2]}"
        with grpc.secure_channel(address, authority.credentials("reader")) as channel:
            assert ReplayBufferServiceStub(channel).ServerStatus(pb.ServerStatusRequest(), timeout=20).tls


def test_settings_reach_a_server_through_its_environment_as_spawn_server_writes_them(authority):
    variables = {f"TDREPLAY_{name.upper()}": str(value) for name, value in authority.mutual.items()}
    served = completed("tdreplay-server", "serve", "--until-stdin-closes", TDREPLAY_ADDRESS=EVERYWHERE, **variables)
    assert (served.returncode, "tls=yes" in served.stderr) == (0, True), served.stderr


# -- files ----------------------------------------------------------------------------------------------------------------------------------------


def why_not(**settings: object) -> str:
    """What a server says that does not start."""
    with pytest.raises(ReplayError) as raised:
        ReplayServer(ServerConfig(address="127.0.0.1:0", **settings)).start()
    assert isinstance(raised.value, (InvalidArgumentError, ServerUnavailableError))
    return str(raised.value)


@pytest.mark.parametrize("broken", ["cert_file", "key_file", "trusted_ca_file"])
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"], ids=["gone", "empty", "broken"])
def test_certificates_that_cannot_be_used_are_named_before_the_server_listens(authority, tmp_path, broken, content):
    path = tmp_path / "other.pem"
    if content is not None:
        path.write_bytes(content)
    assert f"{broken} ({path})" in why_not(**{**authority.mutual, broken: path}) or content is None


def test_a_certificate_that_is_a_pipe_is_refused_at_once(tmp_path):
    authority = Authority(tmp_path)
    pipe = authority.server_files["cert_file"]
    pipe.unlink()
    os.mkfifo(pipe)
    with pytest.raises(InvalidArgumentError, match="no regular file"):
        ReplayServer(ServerConfig(address="127.0.0.1:0", **authority.server_files)).start()


def test_a_key_of_another_certificate_is_refused(authority, tmp_path):
    other = Authority(tmp_path / "another").server_files["key_file"]
    assert "do not go together: key values mismatch" in why_not(cert_file=authority.server_files["cert_file"], key_file=other)


def test_a_tokens_file_has_to_be_there(tmp_path):
    assert "is not there: 'tdreplay-server token create" in why_not(tokens_file=tmp_path / "tokens.json", data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_tokens_file_without_tokens_lets_nobody_in_and_is_a_warning(tmp_path, caplog):
    change_tokens(tmp_path / "tokens.json", lambda tokens: Tokens())
    with ReplayServer(ServerConfig(address="127.0.0.1:0", tokens_file=tmp_path / "tokens.json")) as server:
        assert "there are no tokens: nobody can call" in caplog.text
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as raised:
            ReplayBufferServiceStub(channel).ListTables(pb.ListTablesRequest(), timeout=20)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


# -- sockets and directories ----------------------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("settings", "wanted"), [({}, 0o600), ({"socket_mode": "660"}, 0o660), ({"socket_mode": "0666"}, 0o666)])
def test_a_socket_is_its_owner_s_in_a_folder_of_its_own_unless_more_is_asked_for(tmp_path, settings, wanted):
    before = os.umask(0o022)
    try:
        with ReplayServer(ServerConfig(address=f"unix:{tmp_path}/made/s.sock", **settings)):
            assert (mode(tmp_path / "made"), mode(tmp_path / "made" / "s.sock")) == (0o700, wanted)
            os.umask(found := os.umask(0o022))
            assert found == 0o022
    finally:
        os.umask(before)


@pytest.mark.parametrize("text", ["6", "rw", "400", "068", "1600", "0o600"])
def test_a_mode_that_is_none_or_would_keep_the_owner_out_is_refused(text):
    with pytest.raises(ValidationError, match="socket_mode"):
        ServerConfig(socket_mode=text)


@pytest.mark.parametrize(("rights", "refused"), [(0o777, True), (0o703, True), (0o1777, False), (0o755, False)])
def test_a_socket_that_other_users_could_replace_is_refused_unless_that_is_asked_for(tmp_path, rights, refused):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(rights)
    address = f"unix:{folder}/s.sock"
    if refused:
        with pytest.raises(ServerUnavailableError, match="all users may write to"):
            ReplayServer(ServerConfig(address=address)).start()
    with ReplayServer(ServerConfig(address=address, insecure=refused)):
        assert (mode(folder), mode(folder / "s.sock")) == (rights, 0o600)


def test_a_data_directory_is_its_owner_s_and_one_that_others_read_is_a_warning(tmp_path, caplog):
    before = os.umask(0)
    try:
        with ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=tmp_path / "parent" / "made", buffer_size=5)):
            pass
    finally:
        os.umask(before)
    found = [tmp_path / "parent", *(path for path in (tmp_path / "parent").rglob("*") if path.is_dir())]
    assert {str(path): mode(path) for path in found} == {str(path): 0o700 for path in found}
    assert "other users" not in caplog.text
    (tmp_path / "old").mkdir()
    (tmp_path / "old").chmod(0o755)
    with ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=tmp_path / "old")):
        assert "other users may look into the data directory" in caplog.text
    assert mode(tmp_path / "old") == 0o755
