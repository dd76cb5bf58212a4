"""A buffer of several shards that Ray places, restarts and finds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, SupportsFloat, SupportsIndex

import ray
from typing_extensions import Self

from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, ReplayError, ServerUnavailableError
from tdreplay.limits import check_choice, check_number, check_seconds
from tdreplay.table_config import TableConfig
from tdreplay_client.ray.calls import answer_of, check_connected, found_directory
from tdreplay_client.ray.directory import RayDirectory
from tdreplay_client.ray.directory_actor import DirectoryActor
from tdreplay_client.ray.settings import NAMESPACE, ClusterSettings, check_name, check_shards, directory_name
from tdreplay_client.ray.status import ClusterStatus, Resized
from tdreplay_client.sharding.buffer import ShardedReplayBuffer
from tdreplay_client.transport.access import TLS

__all__ = ["ReplayCluster"]

ANSWER_SECONDS = 10.0
STOP_SECONDS = 120.0
MODES = ("move", "drain")


class ReplayCluster:
    """Shards of one buffer on the nodes of a Ray cluster: ``ReplayCluster(shards=4, table=TableConfig(1_000_000), data_dir="/data/replay")``.

    Each shard is a tdreplay server, a process of its own, with a port and a directory of its own on the disk of its node. An actor of Ray supervises
    it. The actors are named and detached: the cluster lives until `stop`, whatever becomes of the driver that started it, and any driver of the same
    Ray finds it with `connect`. Rows go between clients and servers over gRPC, or shared memory on one host, and never through Ray's object store.

    - A server that dies is started again by its actor at once, on its data and at its address. A killed actor takes its server with it; Ray starts
      both again. Clients wait, or go on with the other shards (`on_loss` of the buffer), and need not be restarted.
    - Where a node is gone, Ray starts its shards on another one that has room. Their rows are not there: they begin empty. `status` says so, and the
      log of the actor does. On a disk that all nodes have, they go on with their rows.
    - A cluster of the same name and `data_dir` that was stopped is started again with its rows, on whichever nodes have them.

    The servers listen at the addresses of their nodes. Where these are no loopback addresses, other hosts reach them, and a server then takes a
    certificate (`server`: ``{"cert_file": ..., "key_file": ...}``, maybe ``tokens_file`` beside them, which must lie on each node), or `insecure`:
    everybody in the network can then read and change the rows. With ``host="127.0.0.1"`` a Ray of one host needs neither.

    Ray runs its workers, and so the servers, with niceness 15. Where others use their cores, set ``RAY_worker_niceness=0`` before ``ray start``.

    Each shard has the same part of the table's `buffer_size`, rounded up, and keeps it: the capacity of the buffer grows and shrinks with the number
    of shards.

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
        start_timeout: Within how many seconds all servers must be ready.

    Raises:
        InvalidArgumentError: an argument breaks its rule; or the nodes' addresses are reached by other hosts, and nothing protects the servers.
        FailedPreconditionError: this process is not connected to Ray; there is a cluster of this name; the disks have more shards; or a server does
            not start, as with a setting that it refuses: then the message has the end of its log.
        ResourceExhaustedError: the nodes have no room for the shards, and did not get it in time.
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
        _check_reach(settings)
        self._settings, self._actor = settings, _named_actor(settings)
        try:
            self._ask(self._actor.start.remote(number, seconds), seconds + ANSWER_SECONDS)
        except BaseException:
            ray.kill(self._actor, no_restart=True)
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
        made._actor = found_directory(check_name(name))
        settings = answer_of(made._actor.settings.remote(), ANSWER_SECONDS, f"cluster {name!r}")
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
        """The cluster, and each shard, as they said within the last second.

        Raises:
            TableNotFoundError: it was stopped.
            ServerUnavailableError, DeadlineError: the actor that knows it does not come back, or does not answer.
        """
        found: ClusterStatus = self._ask_again(self._actor.status.remote, ANSWER_SECONDS)
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
            ResourceExhaustedError: the nodes have no room for new shards. Nothing changed.
            ReplayError: rows were not moved, as where a shard that stays refuses them. They are on the disk of their shard.
        """
        number, seconds = check_shards(shards), check_seconds(timeout, "timeout")
        how, drained = check_choice(mode, "mode", MODES), check_number(drain_seconds, "drain_seconds", 0.0, 1e6)
        found: Resized = self._ask(self._actor.resize.remote(number, how, drained, seconds), seconds + drained + ANSWER_SECONDS)
        return found

    def drain(self) -> None:
        """Takes no more rows, on all shards. Those that are there are drawn until `stop`.

        Raises:
            FailedPreconditionError: the cluster is being changed already.
            ServerUnavailableError, DeadlineError: a shard does not answer.
        """
        self._ask(self._actor.drain.remote(), 2 * ANSWER_SECONDS)

    def stop(self) -> None:
        """Ends the servers and all actors of the cluster. Rows stay on the disks: a cluster of this name and `data_dir` goes on with them.

        Raises:
            FailedPreconditionError: the cluster is being changed, as by `resize`.
            TableNotFoundError: it was stopped already.
            ServerUnavailableError, DeadlineError: it does not answer.
        """
        self._ask_again(self._actor.stop.remote, STOP_SECONDS)
        ray.kill(self._actor, no_restart=True)
        _wait_until_gone(self._settings.name)

    def _ask_again(self, call: Callable[[], Any], seconds: float) -> Any:
        """The answer of the actor that knows the cluster, also where that is being restarted."""
        until = time.monotonic() + seconds
        while True:
            try:
                return self._ask(call(), max(0.1, until - time.monotonic()))
            except ServerUnavailableError:
                if time.monotonic() > until:
                    raise
                found_directory(self._settings.name)
                time.sleep(0.2)

    def _ask(self, reference: Any, seconds: float) -> Any:
        return answer_of(reference, seconds, f"cluster {self._settings.name!r}")


def _connected(name: str, tls: TLS | bool | None, token: str | None) -> ReplayCluster:
    return ReplayCluster.connect(name, tls=tls, token=token)


def _named_actor(settings: ClusterSettings) -> Any:
    """The new actor that knows the shards.

    Raises:
        FailedPreconditionError: the name is taken.
    """
    options: dict[str, Any] = {"name": directory_name(settings.name), "namespace": NAMESPACE, "lifetime": "detached"}
    try:
        return ray.remote(DirectoryActor).options(num_cpus=0, max_restarts=-1, max_concurrency=64, **options).remote(settings)
    except ValueError:
        raise FailedPreconditionError(
            f"cluster {settings.name!r} is there already: ReplayCluster.connect({settings.name!r}) uses it; another one needs another name"
        ) from None


def _check_reach(settings: ClusterSettings) -> None:
    """Passes where other hosts do not reach the servers, or may."""
    hosts = [settings.host] if settings.host else [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    reached = [host for host in hosts if not host.startswith("127.") and host not in ("::1", "localhost")]
    if reached and not settings.is_encrypted and not settings.insecure:
        raise InvalidArgumentError(
            f"the servers would listen at {reached[0]} without TLS, and other hosts reach that: give server={{'cert_file': ..., 'key_file': ...}}, "
            "or insecure=True where everybody in the network may read and change the rows, or host='127.0.0.1' where all nodes are this host"
        )


def _wait_until_gone(name: str) -> None:
    """Ray forgets the name of an actor a moment after it ended."""
    until = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < until:
        try:
            found_directory(name)
        except ReplayError:
            return
        time.sleep(0.05)
