"""Certificates and tokens that change while clients work: what is open goes on, what comes uses the new ones, and nobody is started again."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import pytest
from certificates import Authority, issued

from conftest import rows
from tdreplay.errors import PermissionDeniedError, UnauthenticatedError, UnauthorizedError
from tdreplay_client import TLS, RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.access.roles import Role
from tdreplay_server.access.tokens_file import change_tokens

SECONDS = 20.0
"""Until a change must have been taken."""


def until(holds: Callable[[], bool]) -> None:
    """Returns once it holds."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def token_of(path: Path, name: str, *roles: Role) -> str:
    return issued(path, name=name, roles=roles, tables=("*",), created=datetime.now(timezone.utc))


def shown_certificate(address: str, ca_file: Path) -> bytes:
    """The certificate that a new connection is shown, as DER. A handshake that fails raises an error."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(ca_file))
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), timeout=10) as plain, context.wrap_socket(plain, server_hostname=host) as encrypted:
        return encrypted.getpeercert(binary_form=True) or b""


class Work:
    """Calls something again and again in a thread, and counts."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step, self.steps, self.error, self._over = step, 0, None, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - the test looks at it.
                self.error = error
                return
            self.steps += 1

    def goes_on(self) -> None:
        """Returns once it did more."""
        before = self.steps
        until(lambda: self.error is not None or self.steps >= before + 20)
        assert self.error is None, repr(self.error)

    def stop(self) -> None:
        self._over.set()
        self._thread.join(SECONDS)


@contextmanager
def working(buffer: RemoteReplayBuffer) -> Iterator[tuple[Work, Work]]:
    """A writer and a stream, both busy."""
    with buffer.writer() as writer, buffer.stream(4, prefetch=2) as stream:
        works = (Work(lambda: (writer.extend(rows(4)), writer.flush())), Work(lambda: next(stream)))
        try:
            for work in works:
                work.goes_on()
            yield works
        finally:
            for work in works:
                work.stop()


@pytest.fixture
def authority(tmp_path) -> Authority:
    return Authority(tmp_path / "ca")


def refused(address: str, tls: TLS, token: str) -> bool:
    try:
        with RemoteReplayBuffer(address, tls=tls, token=token) as buffer:
            buffer.describe()
    except UnauthenticatedError:
        return True
    return False


def test_a_certificate_and_a_token_change_under_load(authority, tmp_path):
    tokens, tls = tmp_path / "tokens.json", TLS(ca_file=authority.ca_file)
    old = token_of(tokens, "old", Role.ACTOR, Role.LEARNER)
    config = ServerConfig(address="127.0.0.1:0", buffer_size=1000, tokens_file=tokens, **authority.server_files)
    with ReplayServer(config) as server, RemoteReplayBuffer(server.address, tls=tls, token=old) as buffer:
        buffer.add_batch(rows(100))
        with working(buffer) as works:
            first = shown_certificate(server.address, authority.ca_file)
            authority.renew()
            assert shown_certificate(server.address, authority.ca_file) != first
            new = token_of(tokens, "new", Role.READER)
            change_tokens(tokens, lambda known: known.without("old"))
            until(lambda: refused(server.address, tls, old))
            for work in works:
                work.goes_on()
            with pytest.raises(UnauthenticatedError, match="not known"):  # A new call over the old connection.
                buffer.describe()
            with RemoteReplayBuffer(server.address, tls=tls, token=new) as other:
                assert other.describe().size > 0
                with pytest.raises(PermissionDeniedError, match="'new' may not call"):
                    other.add_batch(rows(1))


def test_a_token_that_gets_other_roles_has_them_at_once(tmp_path):
    tokens = tmp_path / "tokens.json"
    token = token_of(tokens, "one", Role.READER)
    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=10, tokens_file=tokens)) as server:
        with RemoteReplayBuffer(server.address, token=token) as buffer:
            with pytest.raises(UnauthorizedError):
                buffer.add_batch(rows(1))
            change_tokens(
                tokens,
                lambda known: known.model_copy(update={"tokens": tuple(entry.model_copy(update={"roles": (Role.ACTOR,)}) for entry in known.tokens)}),
            )
            until(lambda: may_insert(buffer))


def may_insert(buffer: RemoteReplayBuffer) -> bool:
    try:
        buffer.add_batch(rows(1))
    except PermissionDeniedError:
        return False
    return True


@pytest.mark.parametrize("broken", ["half", "foreign", "gone"])
def test_a_certificate_that_cannot_be_used_leaves_the_one_before(authority, caplog, broken):
    with ReplayServer(ServerConfig(address="127.0.0.1:0", **authority.server_files)) as server:
        first = shown_certificate(server.address, authority.ca_file)
        certificate = authority.server_files["cert_file"]
        good, other = certificate.read_bytes(), authority.made()[0]
        if broken == "gone":
            certificate.unlink()
        else:
            certificate.write_bytes(other if broken == "foreign" else other[: len(other) // 3])
        for _ in range(3):
            assert shown_certificate(server.address, authority.ca_file) == first
        said = [record.getMessage() for record in caplog.records if "stays in use" in record.getMessage()]
        assert len(said) == 1, said
        certificate.write_bytes(good)
        authority.renew()
        assert shown_certificate(server.address, authority.ca_file) != first


@pytest.mark.parametrize("broken", ["half", "gone", "writable"])
def test_a_tokens_file_that_cannot_be_used_leaves_the_tokens_before(tmp_path, caplog, broken):
    tokens = tmp_path / "tokens.json"
    token = token_of(tokens, "one", Role.READER)

    def complaints() -> int:
        return sum("stay valid" in record.getMessage() for record in caplog.records)

    with ReplayServer(ServerConfig(address="127.0.0.1:0", buffer_size=10, tokens_file=tokens)) as server:
        with RemoteReplayBuffer(server.address, token=token) as buffer:
            good = tokens.read_bytes()
            if broken == "gone":
                tokens.unlink()
            elif broken == "half":
                tokens.write_bytes(good[: len(good) // 2])
            else:
                tokens.chmod(0o666)
            until(lambda: complaints() == 1)
            buffer.describe()
            tokens.write_bytes(good)
            tokens.chmod(0o600)
            later = token_of(tokens, "two", Role.READER)
            until(lambda: not refused(server.address, None, later))
        assert complaints() == 1
    assert later not in caplog.text
    assert token not in caplog.text
