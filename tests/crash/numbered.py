"""Rows that say whose they are, and whether they are whole; and a record of all that was seen of a table, which says whether each is there once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase

SIDE = 64
"""A row has an image of 64 times 64 bytes."""
WORDS = SIDE * SIDE // 8
MOST_ACTORS = 16
ODD = np.random.default_rng(7).integers(1 << 62, 1 << 63, 6, np.uint64) | np.uint64(1)
UNSEEN = -1


def rows(actor: int, first: int, count: int) -> TensorDict:
    """The rows of an actor with the numbers ``[first, first + count)``."""
    actors, numbers = np.full(count, actor), np.arange(first, first + count)
    images = _images(actors, numbers)
    fields = {"actor": actors, "number": numbers, "image": images, "checksum": _checksums(actors, numbers, images)}
    return TensorDict({name: torch.from_numpy(values) for name, values in fields.items()}, [count])


def _images(actor: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Bytes that differ nearly everywhere from those of every other row."""
    seeds = actor.astype(np.uint64) * ODD[0] + number.astype(np.uint64) * ODD[1]
    words = (seeds[:, None] + np.arange(WORDS, dtype=np.uint64)) * ODD[2]
    words ^= words >> np.uint64(29)
    return words.view(np.uint8).reshape(-1, SIDE, SIDE)


def _checksums(actor: np.ndarray, number: np.ndarray, image: np.ndarray) -> np.ndarray:
    words = np.ascontiguousarray(image).reshape(len(image), -1).view(np.uint64)
    weighted = words @ np.arange(1, 2 * WORDS, 2, dtype=np.uint64)
    return (weighted + actor.astype(np.uint64) * ODD[3] + number.astype(np.uint64) * ODD[4]).view(np.int64)


def whole(batch: TensorDictBase) -> np.ndarray:
    """Which rows of a batch are those that an actor made, with every byte in its place."""
    actor, number, image, checksum = (batch[name].numpy() for name in ("actor", "number", "image", "checksum"))
    return (image == _images(actor, number)).all(axis=(1, 2)) & (checksum == _checksums(actor, number, image))


class Sightings:
    """What was seen of a table: which row each row id stands for.

    Attributes:
        checked: rows that were seen, one that was seen twice counted twice.
        wrong: what should not be.
    """

    def __init__(self) -> None:
        self._keys = np.full(1024, UNSEEN)  # Row id -> number * MOST_ACTORS + actor.
        self.checked = 0
        self.wrong: list[str] = []

    def note(self, batch: TensorDictBase) -> None:
        """Takes in a batch of a table, and checks that its rows are whole, and those that were seen under their ids before."""
        ids, right = batch["row_id"].numpy(), whole(batch)
        if not right.all():
            self.wrong.append(f"{(~right).sum()} of {len(ids)} rows are torn, of the ids {ids[~right][:8].tolist()}")
        self.checked += len(ids)
        self._take_in(ids[right], (batch["number"].numpy() * MOST_ACTORS + batch["actor"].numpy())[right])

    def _take_in(self, ids: np.ndarray, keys: np.ndarray) -> None:
        room = int(ids.max(initial=0)) + 1
        if room > len(self._keys):
            self._keys = np.concatenate((self._keys, np.full(room, UNSEEN)))
        before = self._keys[ids]
        self._keys[ids] = keys
        changed = ((before != UNSEEN) & (before != keys)) | (self._keys[ids] != keys)
        self.wrong += [f"row {row_id} is {named(key)}, and was {named(old)}" for row_id, key, old in _first(ids, keys, before, changed)]

    def save(self, path: Path) -> None:
        """Writes it to a file, whole."""
        with path.open("wb") as file:
            np.savez(file, keys=self._keys, checked=self.checked, wrong=np.array(self.wrong, str))

    @classmethod
    def load(cls, path: Path) -> Sightings:
        """What another process saved."""
        found = cls()
        with np.load(path) as saved:
            found._keys, found.checked, found.wrong = saved["keys"], int(saved["checked"]), saved["wrong"].tolist()
        return found

    def add(self, other: Sightings) -> None:
        """Takes in what another one saw."""
        ids = np.flatnonzero(other._keys != UNSEEN)
        self._take_in(ids, other._keys[ids])
        self.checked += other.checked
        self.wrong += other.wrong

    def unseen(self, write_count: int) -> int:
        """How many rows there were that nobody saw."""
        return write_count - int((self._keys[:write_count] != UNSEEN).sum())

    def faults(self, write_count: int, stored: Mapping[int, int], *, in_flight: bool = False) -> list[str]:
        """What is wrong with a table at a quiet moment: nothing, where the rows that each actor stored are there once, in order, and no others.

        Every row id from 0 up stands for one row, and ids are not given twice. So an actor's numbers rise with the ids; of its numbers that were not
        seen, no more lie between two that were than ids that were not seen; and there are as many ids as rows.

        Args:
            write_count: of the table.
            stored: actor -> how many rows it stored, numbered from 0.
            in_flight: whether it may have stored more than that.
        """
        highest, rows = int(np.flatnonzero(self._keys != UNSEEN).max(initial=UNSEEN)), sum(stored.values())
        wrong = [] if write_count == rows or (in_flight and write_count > rows) else [f"{rows} rows were stored, and the table counts {write_count}"]
        wrong += [] if highest < write_count else [f"row {highest} was seen, and the table counts {write_count}"]
        keys = np.concatenate((self._keys, np.full(write_count, UNSEEN)))[:write_count]
        ids, unseen = np.flatnonzero(keys != UNSEEN), np.cumsum(keys == UNSEEN)
        actor, number = keys[ids] % MOST_ACTORS, keys[ids] // MOST_ACTORS
        strangers = set(np.unique(actor).tolist()) - set(stored)
        wrong += [f"rows of actors that stored none: {strangers}"] if strangers else []
        for one, count in stored.items():
            mine, numbers = ids[actor == one], number[actor == one]
            wrong += _out_of_order(one, mine, numbers, unseen) + _missing_at_the_end(one, count, mine, numbers, unseen, in_flight)
        return self.wrong + wrong


def _out_of_order(actor: int, ids: np.ndarray, numbers: np.ndarray, unseen: np.ndarray) -> list[str]:
    """What is wrong with the rows of one actor, seen under these ascending ids; `unseen` says how many ids up to each one were not seen."""
    steps, room = np.diff(numbers, prepend=-1), np.diff(unseen[ids], prepend=0) + 1
    back, skipped = steps < 1, steps > room
    keys = numbers * MOST_ACTORS + actor
    wrong = [f"{named(key)} comes again, or too late, as row {row_id}" for row_id, key, _ in _first(ids, keys, ids, back)]
    return wrong + [f"rows are missing before {named(key)}, row {row_id}" for row_id, key, _ in _first(ids, keys, ids, skipped)]


def _missing_at_the_end(actor: int, count: int, ids: np.ndarray, numbers: np.ndarray, unseen: np.ndarray, in_flight: bool) -> list[str]:
    """Whether the last rows of an actor that stored `count` are among those that were seen, or overwritten."""
    last, room = int(numbers.max(initial=-1)), int(unseen[-1] - (unseen[ids[-1]] if len(ids) else 0))
    if count - 1 - last <= room and (in_flight or last < count):
        return []
    return [f"actor {actor} stored {count} rows, the last that was seen is number {last}, and {room} row ids after it were not seen"]


def _first(ids: np.ndarray, keys: np.ndarray, others: np.ndarray, chosen: np.ndarray) -> list[tuple[int, int, int]]:
    return list(zip(ids[chosen][:8].tolist(), keys[chosen][:8].tolist(), others[chosen][:8].tolist(), strict=True))


def named(key: int) -> str:
    """What a row is called in a message."""
    return f"number {key // MOST_ACTORS} of actor {key % MOST_ACTORS}"
