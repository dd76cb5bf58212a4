"""The actor of one shard: it runs the shard's server, on the disk of its node."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module

import ray
from ray.util import get_node_ip_address

from tdreplay.environment import environment_name
from tdreplay.errors import FailedPreconditionError, ReplayError
from tdreplay_client.ray.calls import is_restarted
from tdreplay_client.ray.server_process import SupervisedServer, free_port, server_options
from tdreplay_client.ray.settings import ClusterSettings
from tdreplay_client.ray.shard_record import ShardRecord, shard_directory
from tdreplay_client.ray.status import DRAINING, LEAVING, SERVING, STARTING, ShardStatus, Target

__all__ = ["ShardActor"]

log = logging.getLogger("tdreplay")
PUBLIC_ONLY = ("cert_file", "key_file", "trusted_ca_file", "client_cert_auth", "tokens_file", "metrics_address", "insecure")
"""Settings of a server that a shard does not need while this host alone reaches it."""
START_SECONDS = 60.0


class ShardActor:
    """Runs the server of a shard, and starts it again when it ends. The server ends with this process, which Ray starts again.

    Its state is in `ShardRecord`, on the disk of the node: whoever is started there goes on with it. On a node that has nothing of the shard it
    begins without rows, and says so.

    Args:
        settings: Of the cluster.
        number: Of the shard.
        next_number: The number of the next shard that the cluster gets, where this one is new.
        has_data: Whether the shard is no new one.
        group: The name of the placement group that has its place; '': none.
    """

    def __init__(self, settings: ClusterSettings, number: int, next_number: int, has_data: bool, group: str) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        self._settings, self._number, self._group = settings, number, group
        self._directory = shard_directory(settings.data_dir, settings.name, number)
        self._node = ray.get_runtime_context().get_node_id()
        self._address = ""
        self._writing, self._emptying = threading.RLock(), threading.Lock()
        self._server: SupervisedServer | None = None
        self._broken = ""
        self._emptied: tuple[int, int] | None = None
        had_data = has_data or is_restarted()
        self._record = ShardRecord(number, time.time(), next_number, began_empty=had_data)
        try:
            self._record = ShardRecord.read(self._directory) or self._begun()
            self._server = None if self._record.state == LEAVING else self._supervised()
        except (OSError, ReplayError) as error:  # The actor lives on, to say so: Ray would say that it died.
            self._broken = f"data_dir ({settings.data_dir!r}) must be a directory in which a shard can write, on node {self._node[:8]}: {error}"
            log.error("shard %d of cluster %s does not start: %s", number, settings.name, self._broken)

    def _begun(self) -> ShardRecord:
        """The record of a shard of which this node has nothing."""
        if self._record.began_empty:
            log.warning("shard %d of cluster %s begins empty: its rows are not on this node", self._number, self._settings.name)
        self._record.write(self._directory)
        return self._record

    def _change(self, **changes: object) -> None:
        with self._writing:
            self._record = replace(self._record, **changes)  # type: ignore[arg-type]  # Each is a field of it.
            self._record.write(self._directory)

    # -- its server ---------------------------------------------------------------------------------------------------------------------------

    def _supervised(self) -> SupervisedServer:
        self._directory.mkdir(parents=True, exist_ok=True)
        return SupervisedServer(self._arguments, self._directory / "server.log", self._ready_at)

    def _arguments(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """What the server is started with. It has the same port each time, while nobody else takes it."""
        settings = self._settings
        host = settings.host or get_node_ip_address()
        port = free_port(host, self._record.port)
        self._change(port=port)
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        options = self._options() | {"address": self._address, "durability": settings.durability, "insecure": settings.insecure}
        return server_options(options), {} if self._record.starts else self._first_table()

    def _options(self) -> dict[str, object]:
        own = {"data_dir": str(self._directory / "data"), "cluster": self._settings.name, "shard": self._number}
        return {**self._settings.server, **own}

    def _first_table(self) -> dict[str, str]:
        """A server that never ran makes the table. Later a client may have given it another capacity."""
        table = self._settings.table_of(self._number)
        return {environment_name("tables"): json.dumps({table.name: table.to_json()})}

    def _ready_at(self, _address: str) -> None:
        self._change(starts=self._record.starts + 1)
        log.info("shard %d of cluster %s listens at %s", self._number, self._settings.name, self._address)

    # -- what the directory asks --------------------------------------------------------------------------------------------------------------

    def ready(self, seconds: float) -> ShardStatus:
        """The shard, once its server is ready.

        Raises:
            FailedPreconditionError: it does not start. The message has the end of its log.
            ServerUnavailableError: it is not ready in time.
        """
        if self._broken:
            raise FailedPreconditionError(self._broken)
        if self._server is not None:
            self._server.wait(seconds)
        return self.status()

    def status(self) -> ShardStatus:
        """The shard now."""
        record, server = self._record, self._server
        there = server is not None and server.is_ready
        state = record.state if there or record.state == LEAVING else STARTING
        pid, error = (None, self._broken) if server is None else (server.pid, server.error)
        return ShardStatus(self._number, self._address, self._node, state, max(0, record.starts - 1), record.began_empty, error, pid)

    def kept(self) -> tuple[ShardRecord, str]:
        """What it keeps on its disk, and the name of its placement group."""
        return self._record, self._group

    def keep_next_number(self, number: int) -> None:
        """Keeps the number of the next shard that the cluster gets: no number is given twice."""
        self._change(next_number=max(number, self._record.next_number))

    def drain(self, mode: str, leaves_at: float) -> None:
        """Says that it takes no more rows, and when it leaves and how; '': it stays."""
        if self._record.state != LEAVING:
            self._change(state=DRAINING, mode=mode, leaves_at=leaves_at)
            if mode == "move":  # What moves rows takes seconds to import, and is needed soon.
                threading.Thread(target=import_module, args=["tdreplay_client.ray.moving"], daemon=True).start()

    def serve(self) -> None:
        """Takes rows again, where it was drained and is not to leave."""
        if self._record.state == DRAINING and not self._record.mode:
            self._change(state=SERVING)

    def leave(self, mode: str, targets: Sequence[int]) -> None:
        """Says that clients do not use it any more. Its rows go to the shards of these numbers, where they are to be moved; `mode` may change."""
        if self._record.state != LEAVING:
            self._change(state=LEAVING, mode=mode, targets=tuple(targets))
        elif self._record.mode != mode:
            self._change(mode=mode)

    def empty(self, targets: Sequence[Target], seconds: float) -> tuple[int, int]:
        """Gives its rows to others, or drops them, and keeps nothing on its disk. How many rows were moved, and how many were dropped.

        Its server is started anew where this user of this host alone reaches it: whatever it acknowledged to clients is stored by then, and nothing
        comes after that. An actor that was restarted meanwhile goes on with the rows that were not moved yet. A second call waits for the first.
        """
        with self._emptying:
            if self._emptied is None:
                self._emptied = self._given_away(targets, seconds)
            return self._emptied

    def _given_away(self, targets: Sequence[Target], seconds: float) -> tuple[int, int]:
        self.stop()
        with tempfile.TemporaryDirectory(prefix="tdreplay-") as scratch:
            address = f"unix:{scratch}/shard.sock"
            options = {name: value for name, value in self._options().items() if name not in PUBLIC_ONLY} | {"address": address}
            server = SupervisedServer(lambda: (server_options(options), {}), self._directory / "server.log", lambda _: None)
            try:
                server.wait(START_SECONDS)
                moved, dropped = self._moved(address, targets, seconds)
            finally:
                server.stop()
        shutil.rmtree(self._directory)
        log.info("shard %d of cluster %s left: %d rows moved, %d dropped", self._number, self._settings.name, moved, dropped)
        return moved, dropped

    def _moved(self, address: str, targets: Sequence[Target], seconds: float) -> tuple[int, int]:
        from tdreplay_client.ray.moving import (  # Here: torch takes seconds, and the actor of a shard that stays needs none.
            move_tables,
            rows_of_server,
        )

        if self._record.mode != "move":
            return self._record.moved_rows, max(0, rows_of_server(address) - self._record.moved_rows)
        if tuple(target.number for target in targets) != self._record.targets:
            raise FailedPreconditionError(f"the rows of shard {self._number} go to the shards {list(self._record.targets)}, which are not all there")
        move_tables(address, targets, self._settings.tls, self._settings.token, seconds, self)
        return self._record.moved_rows, 0

    def moved_until(self, table: str) -> int:
        """As in `Notes`."""
        return self._record.moved.get(table, 0)

    def note(self, table: str, until: int, rows: int) -> None:
        """As in `Notes`."""
        self._change(moved={**self._record.moved, table: until}, moved_rows=self._record.moved_rows + rows)

    def stop(self) -> None:
        """Ends its server, as after SIGTERM. What was acknowledged is on the disk."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    def discard(self) -> None:
        """Ends its server, and keeps nothing on its disk."""
        self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
