"""{fork, forkserver, spawn} x {idle, busy parent} x {sync, asyncio}, and a DataLoader with four workers: data, or an error at once."""

from __future__ import annotations

import os
from datetime import datetime, timezone

import process_starts
import pytest
import torch
from certificates import Authority, issued

from children import child_of, server_process
from tdreplay_client import TLS, RemoteReplayBuffer
from tdreplay_server import ServerConfig
from tdreplay_server.access.roles import Role


@pytest.mark.timeout(300)
def test_a_started_process_gets_data_and_a_forked_one_an_error_at_once(tmp_path):
    authority = Authority(tmp_path / "tls")
    token = issued(tmp_path / "tokens", name="all", roles=(Role.ADMIN,), tables=("*",), created=datetime.now(timezone.utc))
    config = ServerConfig(address="127.0.0.1:0", **authority.server_files, tokens_file=tmp_path / "tokens")
    with server_process(config) as server:
        with RemoteReplayBuffer(server.address, buffer_size=100, tls=TLS(ca_file=authority.ca_file), token=token) as buffer:
            buffer.add_batch({"n": torch.zeros(10, dtype=torch.int64)})
        with child_of(process_starts.start_others, server.address, os.fspath(authority.ca_file), token) as starter:
            assert starter.line == "passed"
            assert starter.wait() == 0
