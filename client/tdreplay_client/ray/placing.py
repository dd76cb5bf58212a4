"""On which nodes the actors of shards run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray.util import get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from tdreplay.errors import ResourceExhaustedError
from tdreplay_client.ray.calls import answer_of
from tdreplay_client.ray.settings import NAMESPACE, ClusterSettings, group_name, shard_name
from tdreplay_client.ray.shard_actor import ShardActor
from tdreplay_client.ray.shard_record import ShardRecord, cluster_directory, records_under

__all__ = ["Kept", "kept_shards", "remove_group", "shortage", "started_shards"]

log = logging.getLogger("tdreplay")
STRATEGIES = {"spread": "SPREAD", "pack": "PACK"}


class Kept(NamedTuple):
    """A shard whose rows are on a disk.

    Attributes:
        record: What is kept of it.
        node: The id of the node; '': all nodes have this disk.
    """

    record: ShardRecord
    node: str


def kept_shards(settings: ClusterSettings, seconds: float) -> dict[int, Kept]:
    """The shards of a cluster that lie on the disks of the nodes, by number. Of two with one number it is the one that was begun last.

    Raises:
        ReplayError: a node does not answer in time, or what is there is broken, or `data_dir` is no path there.
    """
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    asking = [_looking.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(settings) for node in nodes]
    found: dict[int, list[Kept]] = {}
    for node, reference in zip(nodes, asking, strict=True):
        for record in answer_of(reference, seconds, f"node {node[:8]}"):
            found.setdefault(record.number, []).append(Kept(record, node))
    return {number: _chosen(kept, len(nodes)) for number, kept in found.items()}


def _chosen(kept: Sequence[Kept], nodes: int) -> Kept:
    last = max(kept, key=lambda one: one.record.begun)
    if len(kept) == nodes:
        return last._replace(node="")
    if len(kept) > 1:
        log.warning("shard %d lies on %d nodes: the one that was begun last counts, on node %s", last.record.number, len(kept), last.node[:8])
    return last


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _looking(settings: ClusterSettings) -> list[ShardRecord]:
    return records_under(cluster_directory(settings.data_dir, settings.name))


def started_shards(
    settings: ClusterSettings, numbers: Sequence[int], kept: Mapping[int, Kept], next_number: int, seconds: float, beside: str = ""
) -> dict[int, Any]:
    """The actors of shards, by number. Those whose rows are on one node's disk are placed there, the others as the cluster says.

    `beside` is the id of the node that has most of the cluster's shards already; '': there are none.

    Raises:
        ResourceExhaustedError: there is no room for them on the nodes.
    """
    at_data = {number: kept[number].node for number in numbers if number in kept and kept[number].node}
    places = {number: _Place(NodeAffinitySchedulingStrategy(node, soft=True), "") for number, node in at_data.items()}
    free = [number for number in numbers if number not in places]
    if settings.placement == "with_learner":
        places.update({number: _Place(NodeAffinitySchedulingStrategy(settings.learner_node, soft=True), "") for number in free})
    elif settings.placement == "pack" and beside:
        for number in free:
            places.update(_in_group(settings, [number], seconds, beside))
    elif free:
        places.update(_in_group(settings, free, seconds))
    return {number: _actor(settings, number, places[number], next_number, has_data=number in kept) for number in numbers}


class _Place(NamedTuple):
    """Where Ray is to place an actor, and the name of the placement group that has the place; '': none."""

    strategy: Any
    group: str


def _in_group(settings: ClusterSettings, numbers: Sequence[int], seconds: float, beside: str = "") -> dict[int, _Place]:
    """The places of a new group, by number. Each group is placed by itself; one of a single shard is on a given node, where that has room."""
    name, shards = group_name(settings.name, numbers[0]), len(numbers)
    strategy, where = ("STRICT_PACK", {"_soft_target_node_id": beside}) if beside else (STRATEGIES[settings.placement], {})
    group = placement_group([dict(settings.resources)] * shards, strategy, name=name, lifetime="detached", **where)
    if not group.wait(seconds):
        remove_placement_group(group)
        raise ResourceExhaustedError(
            f"there is no room on the nodes for {shards} shards with {dict(settings.resources)} each, within {seconds:.0f} s: "
            f"{shortage(settings.resources, shards) or 'Ray did not place them'}"
        )
    return {number: _Place(PlacementGroupSchedulingStrategy(group, bundle), name) for bundle, number in enumerate(numbers)}


def shortage(resources: Mapping[str, float], shards: int) -> str:
    """What the nodes have too little of for so many shards, in words; '': nothing."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    free = ray.available_resources()
    for name, each in resources.items():
        most, total = max((node.get(name, 0.0) for node in nodes), default=0.0), sum(node.get(name, 0.0) for node in nodes)
        if most < each:
            return f"no node has {name}: {each:g}, the most that one has is {most:g}"
        if total < each * shards:
            return f"all {len(nodes)} nodes together have {name}: {total:g}"
        if free.get(name, 0.0) < each * shards:
            return f"{name}: {free.get(name, 0.0):g} is free of {total:g}, others use the rest"
    return ""


def remove_group(name: str) -> None:
    """Gives back what a placement group reserved, where it is there."""
    try:
        remove_placement_group(get_placement_group(name))
    except ValueError:
        log.info("placement group %s is gone already", name)


def _actor(settings: ClusterSettings, number: int, place: _Place, next_number: int, *, has_data: bool) -> Any:
    resources = dict(settings.resources)
    options: dict[str, Any] = {"num_cpus": resources.pop("CPU", 0), "num_gpus": resources.pop("GPU", 0)}
    if "memory" in resources:
        options["memory"] = resources.pop("memory")
    made = ray.remote(ShardActor).options(
        name=shard_name(settings.name, number),
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_concurrency=8,
        scheduling_strategy=place.strategy,
        resources=resources,
        **options,
    )
    return made.remote(settings, number, next_number, has_data, place.group)
