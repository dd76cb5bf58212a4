"""The named actor that knows a cluster: it is made once, and ended with all that belongs to it."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import ray

from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, ReplayError
from tdreplay_client.ray.calls import found_directory, found_shards
from tdreplay_client.ray.directory_actor import DirectoryActor
from tdreplay_client.ray.placing import remove_group
from tdreplay_client.ray.settings import NAMESPACE, ClusterSettings, directory_name, group_name, shard_name

__all__ = ["check_reach", "end_cluster", "named_directory", "wait_until_gone"]

GONE_SECONDS = 10.0
HEAD = "node:__internal_head__"
"""What Ray gives its head node alone to give."""


def check_reach(settings: ClusterSettings) -> None:
    """Passes where other hosts do not reach the servers, or may.

    Raises:
        InvalidArgumentError: they do, and nothing protects the servers.
    """
    hosts = [settings.host] if settings.host else [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    reached = [host for host in hosts if not host.startswith("127.") and host not in ("::1", "localhost")]
    if reached and not settings.is_encrypted and not settings.insecure:
        raise InvalidArgumentError(
            f"the servers would listen at {reached[0]} without TLS, and other hosts reach that: give server={{'cert_file': ..., 'key_file': ...}}, "
            "or insecure=True where everybody in the network may read and change the rows, or host='127.0.0.1' where all nodes are this host"
        )


def named_directory(settings: ClusterSettings) -> Any:
    """The new actor that knows the shards, on Ray's head node: without that there is no Ray. What another one left that was killed for good is ended.

    Raises:
        FailedPreconditionError: the name is taken.
    """
    head = {HEAD: 0.001} if HEAD in ray.cluster_resources() else {}
    options: dict[str, Any] = {"name": directory_name(settings.name), "namespace": NAMESPACE, "lifetime": "detached", "resources": head}
    try:
        made = ray.remote(DirectoryActor).options(num_cpus=0, max_restarts=-1, max_concurrency=64, **options).remote(settings)
    except ValueError:
        raise FailedPreconditionError(
            f"cluster {settings.name!r} is there already: ReplayCluster.connect({settings.name!r}) uses it; another one needs another name"
        ) from None
    _end_shards(settings.name)
    return made


def end_cluster(name: str, directory: Any) -> None:
    """Ends the actor that knows the shards, and those of all shards. Their servers end at once; what was acknowledged is on the disks."""
    ray.kill(directory, no_restart=True)
    _end_shards(name)


def _end_shards(name: str) -> None:
    for number in found_shards(name):
        with suppress(ValueError):  # It is gone already.
            ray.kill(ray.get_actor(shard_name(name, number), namespace=NAMESPACE), no_restart=True)
        remove_group(group_name(name, number))


def wait_until_gone(name: str) -> None:
    """Ray forgets the name of an actor a moment after it ended."""
    until = time.monotonic() + GONE_SECONDS
    while time.monotonic() < until:
        try:
            found_directory(name)
        except ReplayError:
            return
        time.sleep(0.05)
