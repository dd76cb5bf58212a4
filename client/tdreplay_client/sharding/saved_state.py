"""The file that `save` writes and `load` reads, where a buffer has several shards: the state of each. One shard alone has the file of any buffer."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tdreplay.errors import InvalidArgumentError, MissingRowsError
from tdreplay.metadata import Metadata, metadata_path
from tdreplay.state import State
from tdreplay_client.sharding.shard import Shard
from tdreplay_client.sharding.shard_set import ShardSet
from tdreplay_client.sharding.shares import used_places

__all__ = ["load_shards", "save_shards"]

FORMAT = 2
"""That of a buffer which is no shard is 1."""


def save_shards(shards: ShardSet, path: str | os.PathLike[str]) -> None:
    """Writes the state of each shard to ``path + ".metadata"``, whole or not at all.

    Raises:
        ServerUnavailableError: one is lost, also where the buffer goes on without it.
    """
    there = shards.everywhere
    states = shards.each(lambda shard: shard.writes.state(), there)
    found = {shard.number: _metadata(state) for shard, state in zip(there, states, strict=True)}
    if len(there) == 1:
        found[there[0].number].write(path)
    else:
        _write(path, found)


def _metadata(state: State) -> Metadata:
    return Metadata(state.buffer_size, state.size, state.pointer, state.write_count)


def _write(path: str | os.PathLike[str], found: Mapping[int, Metadata]) -> None:
    target = metadata_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    entries = [{"shard": number, **asdict(one)} for number, one in found.items()]
    scratch.write_text(json.dumps({"format": FORMAT, "shards": entries}, indent=1) + "\n")
    scratch.replace(target)


def _read(path: str | os.PathLike[str], shards: Sequence[Shard]) -> dict[int, Metadata]:
    """What the file says of each of these shards.

    Raises:
        FileNotFoundError: there is none.
        InvalidArgumentError: it is broken, or of other shards.
    """
    if len(shards) == 1:
        return {shards[0].number: Metadata.read(path)}
    source = metadata_path(path)
    try:
        entries: Any = json.loads(source.read_text())
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"{source} is not JSON: {error}") from None
    form, parts = (entries.get("format"), entries.get("shards")) if isinstance(entries, dict) else (None, None)
    if type(form) is not int or form != FORMAT or not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise InvalidArgumentError(f"{source} must be a JSON object with format {FORMAT} and a list of shards")
    numbers, expected = [part.get("shard") for part in parts], [shard.number for shard in shards]
    if numbers != expected:
        raise InvalidArgumentError(f"{source} is of the shards {numbers}, and the buffer has {expected}")
    return {number: Metadata.checked(part, f"{source}: shard {number}") for number, part in zip(expected, parts, strict=True)}


def load_shards(shards: ShardSet, path: str | os.PathLike[str]) -> None:
    """Goes back to where all shards stood. It looks at all of them before it sets one back.

    Raises:
        MissingRowsError: rows are not stored any more. Nothing changes, unless they left while it looked.
        FileNotFoundError, InvalidArgumentError: there is no such file, or it is broken, or of other shards.
        ServerUnavailableError: a shard is lost, also where the buffer goes on without it.
    """
    there = shards.everywhere
    saved = _read(path, there)
    states = shards.each(lambda shard: shard.writes.state(), there)
    sizes = [_whole_size([one.buffer_size for one in some]) for some in (saved.values(), states)]
    if sizes[0] != sizes[1] and any(one.data_size for one in saved.values()) | any(state.size for state in states):
        raise MissingRowsError(f"buffer_size ({sizes[0]}) must be {sizes[1]}: a buffer that holds rows keeps its capacity")
    for shard, state in zip(there, states, strict=True):
        _check_stored(shard, saved[shard.number], state)
    shards.each(lambda shard: shard.writes.rewind(saved[shard.number]), there)


def _whole_size(sizes: Sequence[int]) -> int:
    """The capacity of a whole whose shards have these: not all are used, where rows are fewer than shards."""
    return sum(sizes[place] for place in used_places(sizes))


def _check_stored(shard: Shard, saved: Metadata, state: State) -> None:
    """Passes where a shard can go back."""
    first, oldest = saved.write_count - saved.data_size, state.write_count - state.size
    if saved.buffer_size != state.buffer_size and (saved.data_size or state.size):
        raise MissingRowsError(f"buffer_size ({saved.buffer_size}) of shard {shard.number} must be {state.buffer_size}: it holds rows")
    if saved.data_size and (first < oldest or saved.write_count > state.write_count):
        raise MissingRowsError(
            f"the rows of ids [{first}, {saved.write_count}) of shard {shard.number} must be stored, and it has [{oldest}, {state.write_count}); "
            f"no row is brought back"
        )
