"""No error tells a client where the server keeps its files. The server's log has the whole text, under the name that the client has too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import rows
from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, ReplayError, ResourceExhaustedError
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.transport.guards.private_paths import PrivatePaths

NAMES = "private room"
"""A directory whose name would end a path, if that were cut at a space."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the disk of /srv/a b/replay has 5 bytes left", "the disk of PATH has 5 bytes left"),
        ("rows cannot be written to /srv/a b/replay/tables/x/rows: [Errno 5]", "rows cannot be written to PATH: [Errno 5]"),
        ("[Errno 13] Permission denied: '/proc/self/fd/12'", "[Errno 13] Permission denied: 'PATH'"),
        ("(/tmp/tdreplay-journal-x/journal) is broken", "(PATH) is broken"),
        ("rows/second and/or 1/2 at http://host/a/b, field /obs", "rows/second and/or 1/2 at http://host/a/b, field /obs"),
    ],
)
def test_paths_are_taken_out_of_a_text(text, shown):
    assert PrivatePaths([Path("/srv/a b/replay")]).hidden(text, own=False) == shown


def test_what_a_client_said_itself_stays_unless_it_is_a_directory_of_the_server():
    paths = PrivatePaths([Path("/srv/replay")])
    assert paths.hidden("field '/steps/obs/image' is missing", own=True) == "field '/steps/obs/image' is missing"
    assert paths.hidden("table '/srv/replay/x'", own=True) == "table 'PATH'"


def test_a_relative_directory_is_hidden_as_the_absolute_one_that_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert PrivatePaths([Path("here")]).hidden(f"{tmp_path}/here/tables", own=True) == "PATH"


def refused(act, kind: type[ReplayError], caplog, directory: Path) -> str:
    """What the client hears, after a check that it has no path in it, and that the log has the whole of it under the same name."""
    caplog.clear()
    with pytest.raises(kind) as raised:
        act()
    said = str(raised.value)
    assert NAMES not in said
    assert str(directory) not in said
    assert not re.search(r"(?<![\w.])/\w+/", said), said
    (line,) = [record.getMessage() for record in caplog.records if f"request_id={raised.value.request_id}" in record.getMessage()]
    assert str(directory) in line
    return said


def break_checkpoints(data: Path) -> None:
    (data / "checkpoints").rmdir()
    (data / "checkpoints").symlink_to(data)


def test_errors_of_the_disk_reach_clients_without_paths(tmp_path, caplog):
    data = tmp_path / NAMES / "data"
    data.parent.mkdir()
    caplog.set_level("INFO", "tdreplay")
    with ReplayServer(ServerConfig(address="127.0.0.1:0", data_dir=data)) as server:
        with RemoteReplayBuffer(server.address, table="first", buffer_size=10) as buffer:
            buffer.add_batch(rows(5))
            with RemoteReplayBuffer(server.address, table="huge", buffer_size=1 << 50) as large:
                assert "bytes left" in refused(lambda: large.add_batch(rows(1)), ResourceExhaustedError, caplog, data)
            assert buffer.checkpoint("kept").path == str(data / "checkpoints" / "first" / "kept")  # An admin has to know.
            folder = data / "checkpoints" / "first"
            folder.rename(folder.with_name("away"))
            folder.symlink_to(tmp_path)
            assert "symbolic link" in refused(lambda: buffer.checkpoint("again"), FailedPreconditionError, caplog, data)
            (data / "tables" / "second").symlink_to(tmp_path)
            refused(lambda: RemoteReplayBuffer(server.address, table="second", buffer_size=10), FailedPreconditionError, caplog, data)
            with pytest.raises(InvalidArgumentError, match="'/etc/passwd/x'"):  # Its own value.
                RemoteReplayBuffer(server.address, table="/etc/passwd/x", buffer_size=10)
