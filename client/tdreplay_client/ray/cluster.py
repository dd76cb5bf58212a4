"""A buffer of several shards that Ray places, restarts and finds."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Literal, SupportsFloat, SupportsIndex

import ray
from typing_extensions import Self

from tdreplay.errors import ServerUnavailableError
from tdreplay.limits import check_choice, check_number, check_seconds
from tdreplay.table_config import TableConfig
from tdreplay_client.ray.calls import answer_of, check_connected, found_directory
from tdreplay_client.ray.directory import RayDirectory
from tdreplay_client.ray.named_directory import check_reach, end_cluster, named_directory, wait_until_gone
from tdreplay_client.ray.settings import ClusterSettings, check_name, check_shards
from tdreplay_client.ray.status import ClusterStatus, Resized
from tdreplay_client.ray.watched_shards import seconds_until
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_client.transport.access import TLS

__all__ = ["ReplayCluster"]

ANSWER_SECONDS = 10.0
STATUS_SECONDS = 60.0
"""How long the status waits for the actor that knows it, which may be being restarted."""
UNDO_SECONDS = 60.0
"""How much later than `start_timeout` whoever starts a cluster is answered: what was started is ended before."""
STOP_SECONDS = 120.0
MODES = ("move", "drain")


class ReplayCluster:
    """Shards of one buffer on the nodes of a Ray cluster: ``ReplayCluster(shards=4, table=TableConfig(1_000_000), data_dir="/data/replay")``.

    It uses the Ray to which this process is connected, and never connects it: `ray.init` joins a Ray that runs on this host already, or starts one,
    and which of both is the caller's to say.

    Each shard is a tdreplay server, a process of its own, with a port and a directory of its own on the disk of its node. An actor of Ray supervises
    it. The actors are named and detached: the cluster lives until `stop`, whatever becomes of the driver that started it, and any driver of the same
    Ray finds it with `connect`. Rows go between clients and servers over gRPC, or shared memory on one host, and never through Ray's object store.

    - A server that dies is started again by its actor at once, on its data and at its address. A killed actor takes its server with it; Ray starts
      both again. Clients wait, or go on with the other shards (`on_loss` of the buffer), and need not be restarted.
    - Where a node is gone, Ray starts its shards on another one that has room. Their rows are not there: they begin empty. `status` says so, and the
      log of the actor does. On a disk that all nodes have, they go on with their rows. While no node has room, the shard is ``restarting``.
    - A cluster of the same name and `data_dir` that was stopped is started again with its rows, on whichever nodes have them.

    The servers listen at the addresses of their nodes. Where these are no loopback addresses, other hosts reach them, and a server then takes a
    certificate (`server`: ``{"cert_file": ..., "key_file": ...}``, maybe ``tokens_file`` beside them, which must lie on each node), or `insecure`:
    everybody in the network can then read and change the rows. With ``host="127.0.0.1"`` a Ray of one host needs neither.

    Ray runs its workers, and so the servers, with niceness 15. Where others use their cores, set ``RAY_worker_niceness=0`` before ``ray start``.

    Each shard has its part of the table's `buffer_size`, and keeps it: the capacity of the buffer grows and shrinks with the number of shards. One
    that comes later has as large a part as the last of those with which the cluster began.

    Args:
        shards: How many there are, from 1 to 16384. Shards whose rows are found on the disks are among them.
        table: The table of the whole buffer. Its name is ``default`` where it has none.
        data_dir: Where each node keeps its shards: an absolute path, in which ``~`` and ``$VARIABLES`` are those of the node. They lie in
            ``<data_dir>/<name>/shard-<number>``, with the logs of their servers.
        name: Of the cluster; no other one of this Ray has it.
        resources: What one shard takes of its node, as Ray counts it: ``{"CPU": 1}`` where nothing is said.
        placement: ``spread``: on as many nodes as possible. ``pack``: on as few. Both are a placement group. ``with_learner``: all on the node of the
            driver that starts it.
        durability: What acknowledged rows survive, as the server's setting: ``process``, ``interval:SECONDS`` or ``power``.
        host: Where the servers listen. None: at the address that Ray knows their node by.
        insecure: Whether they may listen without TLS where other hosts reach them.
        server: Further settings of the servers, by name.
        tls: How clients connect, as in `RemoteReplayBuffer`: this object's buffers, and the shards when rows are moved.
        token: The same for what clients show. The actors of the cluster know it; tokens are no secret from those who may use this Ray.
        start_timeout: Within how many seconds all servers must be ready. The constructor waits for them; where they are not, it ends what it started
            and raises, within a minute more at most.

    Raises:
        InvalidArgumentError: an argument breaks its rule; or the nodes' addresses are reached by other hosts, and nothing protects the servers.
        FailedPreconditionError: this process is not connected to Ray; there is a cluster of this name; the disks have more shards; or a server does
            not start, as with a setting that it refuses: then the message has the end of its log; or `data_dir` cannot be written.
        ResourceExhaustedError: the nodes have no room for the shards, and did not get it in time. The message says what is missing.
        DeadlineError, ServerUnavailableError: they were not ready in time.
    """

    def __init__(
        self,
        shards: SupportsIndex,
        table: TableConfig,
        data_dir: str | os.PathLike[str],
        *,
        name: str = "replay",
        resources: Mapping[str, float] | None = None,
        placement: Literal["spread", "pack", "with_learner"] = "spread",
        durability: str = "process",
        host: str | None = None,
        insecure: bool = False,
        server: Mapping[str, Any] | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
        start_timeout: SupportsFloat | None = 120.0,
    ) -> None:
        number, seconds = check_shards(shards), check_seconds(start_timeout, "start_timeout")
        check_connected()
        node = ray.get_runtime_context().get_node_id()
        path = os.fspath(data_dir)
        settings = ClusterSettings.of(name, number, table, path, resources, placement, durability, host, insecure, server, tls, token, node)
        check_reach(settings)
        self._settings, actor = settings, named_directory(settings)
        try:
            answer_of(actor.start.remote(number, seconds), seconds + UNDO_SECONDS, f"cluster {settings.name!r}")
        except BaseException:
            end_cluster(settings.name, actor)
            wait_until_gone(settings.name)
            raise

    @classmethod
    def connect(cls, name: str = "replay", *, tls: TLS | bool | None = None, token: str | None = None) -> Self:
        """The cluster of this name, which any driver of this Ray, or a task or an actor, may have started.

        Args:
            name: Of the cluster.
            tls: How clients connect. None: as whoever started it said.
            token: What they show. None: the same.

        Raises:
            TableNotFoundError: there is none.
            FailedPreconditionError: this process is not connected to Ray.
            ServerUnavailableError, DeadlineError: it does not answer.
        """
        made = cls.__new__(cls)
        settings: ClusterSettings = answer_of(found_directory(check_name(name)).settings.remote(), ANSWER_SECONDS, f"cluster {name!r}")
        made._settings = settings.shown_by(tls, token)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return _connected, (self._settings.name, self._settings.tls, self._settings.token)

    @property
    def name(self) -> str:
        """Its name."""
        return self._settings.name

    @property
    def directory(self) -> RayDirectory:
        """Where the shards are, for `ShardedReplayBuffer`."""
        return RayDirectory(self._settings.name)

    def buffer(self, **options: Any) -> ShardedReplayBuffer:
        """The buffer over all shards.

        It follows the cluster: it asks about once a second which shards there are. It can be pickled, into tasks and actors of this Ray.

        Args:
            options: as for `ShardedReplayBuffer`. The table is the cluster's where none is named.
        """
        said = {"table": self._settings.table.name, "tls": self._settings.tls, "token": self._settings.token}
        return ShardedReplayBuffer(self.directory, **(said | options))

    def status(self) -> ClusterStatus:
        """The cluster, and each shard, as they said within the last second. While the actor that knows it is restarted, it waits, for 60 s at most.

        Raises:
            TableNotFoundError: it was stopped.
            ServerUnavailableError, DeadlineError: the actor that knows it does not come back, or does not answer.
        """
        found: ClusterStatus = self._ask_again("status", STATUS_SECONDS)
        return found

    def resize(
        self,
        shards: SupportsIndex,
        *,
        mode: Literal["move", "drain"] = "move",
        drain_seconds: SupportsFloat = 3.0,
        timeout: SupportsFloat | None = 3600.0,
    ) -> Resized:
        """Adds shards, or removes those with the highest numbers, while others use the buffer. It returns when it is done.

        New shards begin empty, and fill. Shards that are to go take no more rows at once. Their rows are drawn for `drain_seconds` more. Then
        clients go on without them, and their rows are moved, each once, with its priority, to those that stay, where they get new row ids; steps
        stay together with their episode. Until a row was moved, it is not drawn. A shard that is full loses its oldest rows for those that come.
        What clients sent before is stored by then, or refused and goes to another shard. The directory of a removed shard is deleted.

        Where the driver ends meanwhile, the cluster goes on by itself. No number of a shard is given twice.

        Args:
            shards: How many there are to be.
            mode: ``move``; or ``drain``: the rows of removed shards are dropped. Their readers have `drain_seconds` to use them.
            drain_seconds: For how long removed shards give rows. A writer that is in the middle of an episode has so long to end it.
            timeout: Within how many seconds it must be done. What is not done by then is not undone: the same call goes on with it.

        Raises:
            InvalidArgumentError: an argument is out of its range.
            FailedPreconditionError: the cluster is being changed already.
            TableNotFoundError: it was stopped.
            ServerUnavailableError: the actor that knows the cluster was restarted meanwhile. It goes on with shards that leave by itself.
            DeadlineError: it was not done in time.
            ResourceExhaustedError: the nodes have no room for new shards, and did not get it within two minutes. Nothing changed.
            ReplayError: rows were not moved, as where a shard that stays refuses them. They are on the disk of their shard.
        """
        number, seconds = check_shards(shards), check_seconds(timeout, "timeout")
        how, drained = check_choice(mode, "mode", MODES), check_number(drain_seconds, "drain_seconds", 0.0, 1e6)
        found: Resized = self._ask("resize", seconds + drained + ANSWER_SECONDS, number, how, drained, seconds)
        return found

    def drain(self) -> None:
        """Takes no more rows, on all shards. Those that are there are drawn until `stop`. A cluster that is started again takes rows.

        Clients know it about a second later. Their writers then raise `FailedPreconditionError`.

        Raises:
            FailedPreconditionError: the cluster is being changed already.
            ServerUnavailableError, DeadlineError: a shard does not answer.
        """
        self._ask("drain", 2 * ANSWER_SECONDS)

    def stop(self) -> None:
        """Ends the servers and all actors of the cluster. Rows stay on the disks: a cluster of this name and `data_dir` goes on with them.

        It waits for the servers to end as after SIGTERM, for two minutes at most. Those of nodes that do not answer are ended by Ray.

        Raises:
            FailedPreconditionError: the cluster is being changed, as by `resize`.
            TableNotFoundError: it was stopped already.
            ServerUnavailableError, DeadlineError: it does not answer.
        """
        actor = found_directory(self._settings.name)
        self._ask_again("stop", STOP_SECONDS)
        end_cluster(self._settings.name, actor)
        wait_until_gone(self._settings.name)

    def _ask_again(self, order: str, seconds: float) -> Any:
        """What the actor that knows the cluster says, also where that is being restarted."""
        until = time.monotonic() + seconds
        while True:
            try:
                return self._ask(order, seconds_until(until))
            except ServerUnavailableError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def _ask(self, order: str, seconds: float, *arguments: Any) -> Any:
        """What it says. It is found by its name each time: this process may have left its Ray, and come back."""
        actor = found_directory(self._settings.name)
        return answer_of(getattr(actor, order).remote(*arguments), seconds, f"cluster {self._settings.name!r}")


def _connected(name: str, tls: TLS | bool | None, token: str | None) -> ReplayCluster:
    return ReplayCluster.connect(name, tls=tls, token=token)
