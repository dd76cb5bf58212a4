"""Whether servers are the shards of one buffer, by what they say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tdreplay.errors import InvalidArgumentError, SchemaError, TableExistsError
from tdreplay.fields import DTYPE_NAMES
from tdreplay.schema import Schema
from tdreplay.shard_words import shard_words
from tdreplay.table_config import TableRequest
from tdreplay.table_description import TableDescription
from tdreplay_client.sharding.shard import ShardPlace
from tdreplay_client.sharding.shares import share_of, used_places, whole_config

__all__ = ["Member", "check_identities", "check_members", "check_settings"]


class Member(NamedTuple):
    """What a server says of itself as a shard.

    Attributes:
        place: Where it was found, and which shard it is to be.
        description: Of its table.
        cluster: The name of the cluster that it belongs to; '': it does not say.
        shard: Its number there; None: it does not say.
    """

    place: ShardPlace
    description: TableDescription
    cluster: str = ""
    shard: int | None = None


def check_members(members: Sequence[Member]) -> None:
    """Passes where these are shards of one buffer.

    Raises:
        InvalidArgumentError: one is there twice, belongs to another cluster, is another shard than it is to be, or its table has other settings.
        SchemaError: the rows of two differ in their fields.
    """
    check_identities(members)
    whole_config([member.description.config for member in members])
    _check_schemas(members)


def check_identities(members: Sequence[Member]) -> None:
    """Passes where these servers may be the shards of one buffer, whatever their tables are: the descriptions may be of other tables of theirs.

    Raises:
        InvalidArgumentError: one is there twice, belongs to another cluster, or is another shard than it is to be.
    """
    for number, member in enumerate(members):
        _check_identity(members[0], member)
        _check_is_alone(member, members[:number])


def check_settings(members: Mapping[int, Member], asked: TableRequest, shards: int) -> None:
    """Passes where the tables that are there, by their places among so many shards, are parts of the buffer that is asked for.

    Raises:
        TableExistsError: one is not. The message says what the buffer has instead, or, where that cannot be said of the whole, what the shard has.
    """
    configs = [member.description.config for member in members.values()]
    whole = whole_config([configs[place] for place in used_places([config.buffer_size for config in configs])])
    for place, member in members.items():
        share = share_of(asked, place, shards)
        differing = share.differing(member.description.config)
        if differing:
            words, where = share.differences(member.description.config), f" on {member.place.address}"
            if len(members) == shards and set(differing) <= set(asked.differing(whole)):
                words, where = asked.differences(whole), ""
            raise TableExistsError(f"table {asked.name!r} is there{where} with {', '.join(words)}")


def _check_identity(first: Member, member: Member) -> None:
    place = member.place
    if member.cluster != first.cluster:
        raise InvalidArgumentError(f"the server at {place.address} is of {_words(member)}, and the one at {first.place.address} of {_words(first)}")
    if member.shard is not None and member.shard != place.number:
        raise InvalidArgumentError(f"the server at {place.address} is shard {member.shard}, not {place.number}: give the addresses in order")


def _words(member: Member) -> str:
    return shard_words(member.cluster, None) or "no cluster"


def _check_is_alone(member: Member, others: Sequence[Member]) -> None:
    for other in others:
        if member.description.generation_id and member.description.generation_id == other.description.generation_id:
            raise InvalidArgumentError(f"the addresses {other.place.address} and {member.place.address} lead to one server: each shard is its own")


def _check_schemas(members: Sequence[Member]) -> None:
    known = [(member.place, member.description.schema) for member in members if member.description.schema is not None]
    for place, schema in known[1:]:
        first, of_first = known[0]
        if schema != of_first:
            raise SchemaError(
                f"the rows of shard {place.number} at {place.address} are others than those of shard {first.number} at {first.address}: "
                f"{_difference(schema, of_first)}"
            )


def _difference(schema: Schema, other: Schema) -> str:
    """In words, how the first of two schemas differs from the other."""
    ours, theirs = ({field.name: f"{DTYPE_NAMES[field.dtype]} {list(field.shape)}" for field in one.fields} for one in (schema, other))
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            return f"{name!r} is {ours.get(name, 'not there')}, and {theirs.get(name, 'not there')}"
    shapes = (f"{list(one.row_shape)}, with the dimensions {list(one.dim_names)}" for one in (schema, other))
    return f"rows are of shape {', and '.join(shapes)}"
