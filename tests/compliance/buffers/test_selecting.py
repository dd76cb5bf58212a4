"""What an index and fields may be, in every kind of buffer: as a TensorDict is indexed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from compliance.kinds import BufferKind, MakeBuffer
from conftest import numbers, rows
from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import FieldNotFoundError, InvalidArgumentError, SlotIndexError

SIZE = 6


@pytest.fixture
def buffer(make_buffer: MakeBuffer) -> BaseReplayBuffer:
    """Six rows in slot order, in a buffer that has room for more."""
    made = make_buffer(10)
    made.add_batch(rows(SIZE))
    return made


@pytest.fixture
def gap(make_buffer: MakeBuffer, kind: BufferKind, tmp_path) -> BaseReplayBuffer:
    """Rows in slots 1 to 3 of ten alone: those before them are forgotten."""
    made = make_buffer(10)
    made.add_batch(rows(4))
    where: dict[str, Any] = {"format": 1, "buffer_size": 10, "data_size": 3, "pointer": 4, "write_count": 4}
    if kind.shards > 1:
        counts = [[len(range(place, number, kind.shards)) for place in range(kind.shards)] for number in (10, 4)]
        shards = [
            {"shard": place, "buffer_size": size, "data_size": count - (place == 0), "pointer": count % size, "write_count": count}
            for place, (size, count) in enumerate(zip(*counts, strict=True))
        ]
        where = {"format": 2, "shards": shards}
    (tmp_path / "gap.metadata").write_text(json.dumps(where))
    made.load(tmp_path / "gap")
    return made


FLAT = {
    "negative": ([-1, 0, -6, -2], [5, 0, 0, 4]),
    "list of torch scalars": ([torch.tensor(1), torch.tensor(-1)], [1, 5]),
    "list of numpy scalars": ([np.int8(1), np.uint64(3)], [1, 3]),
    "range backwards": (range(4, -1, -2), [4, 2, 0]),
    "range below 0": (range(-2, 0), [4, 5]),
    "int8 array": (np.array([1, -1], np.int8), [1, 5]),
    "uint64 array": (np.array([1, 5], np.uint64), [1, 5]),
    "uint16 tensor": (torch.tensor([1, 5], dtype=torch.uint16), [1, 5]),
    "tensor backwards": (torch.arange(6).flip(0)[::2], [5, 3, 1]),
    "slice": (slice(1, 4), [1, 2, 3]),
    "slice of all": (slice(None), list(range(6))),
    "slice from the end": (slice(-2, None), [4, 5]),
    "slice backwards": (slice(None, None, -2), [5, 3, 1]),
    "slice beyond the end": (slice(4, 2**70), [4, 5]),
    "slice of numpy integers": (slice(np.int64(1), torch.tensor(3)), [1, 2]),
    "mask of booleans": ([True, False, False, True, False, True], [0, 3, 5]),
    "mask of numpy": (np.arange(6) > 3, [4, 5]),
    "mask of torch": (torch.arange(6) == 2, [2]),
}


@pytest.mark.parametrize("case", FLAT)
def test_an_index_is_that_of_a_tensordict(buffer, case):
    index, expected = FLAT[case]
    batch = buffer.sample_by_index(index)
    assert batch.batch_size == batch["index"].shape == batch["row_id"].shape == torch.Size([len(expected)])
    assert numbers(batch) == batch["index"].tolist() == expected
    assert buffer.sample_by_index_fields(index, ["action"])["action"].tolist() == expected


@pytest.mark.parametrize(
    "index",
    [
        [[0, 1, -1], [2, 3, 4]],
        np.array([[0, 1, 5], [2, 3, 4]], np.int32),
        torch.tensor([[0, 1, 5], [-4, 3, 4]]),
        [torch.tensor([0, 1, 5]), [2, 3, 4]],
    ],
    ids=["lists", "numpy", "torch", "mixed"],
)
def test_an_index_of_two_dimensions_gives_two_batch_dimensions(buffer, index):
    batch = buffer.sample_by_index(index)
    assert batch.batch_size == batch["index"].shape == batch["row_id"].shape == batch["next"].batch_size == torch.Size([2, 3])
    assert batch["action"].tolist() == batch["index"].tolist() == [[0, 1, 5], [2, 3, 4]]
    assert batch["obs"].shape == batch["next", "obs"].shape == torch.Size([2, 3, 3])


@pytest.mark.parametrize("index", [2, -4, np.int32(2), np.array(2), torch.tensor(-4)], ids=repr)
def test_one_number_gives_its_row_which_can_be_added_again(buffer, kind, index):
    row = buffer.sample_by_index(index)
    assert row.batch_size == row["index"].shape == row["next"].batch_size == torch.Size([])
    assert (row["action"].item(), row["index"].item(), row["row_id"].item()) == (2, 2, *kind.row_ids([2]))
    buffer.add(row.exclude("index", "row_id"))
    assert numbers(buffer.sample_by_index([-1])) == [2]


def test_rows_that_are_batches_keep_their_dimensions_behind_those_of_the_index(make_buffer):
    buffer = make_buffer(8)
    segments = TensorDict({"obs": torch.rand(6, 5, 2)}, [6, 5])
    buffer.add_batch(segments)
    for index in (3, [[0, 1, 2], [3, 4, -1]], slice(1, 3), torch.zeros(1, 2, 2, dtype=torch.int64)):
        batch, expected = buffer.sample_by_index(index), segments[torch.as_tensor(index) if isinstance(index, list) else index]
        assert batch.batch_size == batch["index"].shape == expected.batch_size
        assert (batch["obs"] == expected["obs"]).all()


def test_what_counts_is_the_order_of_the_slots_when_the_ring_wrapped(make_buffer):
    buffer = make_buffer(10)
    buffer.add_batch(rows(13))
    assert numbers(buffer.sample_by_index(slice(None))) == [10, 11, 12, 3, 4, 5, 6, 7, 8, 9]
    assert numbers(buffer.sample_by_index([-1, 0, -10])) == [9, 10, 10]
    assert numbers(buffer.sample_by_index([False] * 9 + [True])) == [9]


def test_slots_without_a_row_do_not_count(gap):
    assert numbers(gap.sample_by_index([1, -1, -3])) == [1, 3, 1]
    assert numbers(gap.sample_by_index(slice(0, 2))) == [1, 2]
    assert gap.sample_by_index([True, False, True])["index"].tolist() == [1, 3]
    for index in ([0], [-4], [4]):
        with pytest.raises(SlotIndexError, match=rf"index {index[0]} holds no row: the buffer has 3 rows"):
            gap.sample_by_index(index)


NO_ROW = [
    [0, 6],
    [-7, 0],
    [[0, 1], [2, -7]],
    6,
    -7,
    2**63,
    -(2**63),
    -(2**63) - 1,
    2**64,
    [2**63, -1],
    np.array([2**63], np.uint64),
    range(2**63, 2**63 + 2),
]


@pytest.mark.parametrize("index", NO_ROW, ids=str)
def test_an_index_that_names_no_row_is_an_index_error_with_the_number_that_was_given(buffer, index):
    given = {n for n in np.array(index, dtype=object).reshape(-1) if not -6 <= n < 6}
    with pytest.raises(SlotIndexError, match=rf"index ({'|'.join(map(str, given))}) holds no row"):
        buffer.sample_by_index(index)


NO_INDEX = {
    "mask too short": ([True] * 5, r"mask of shape \[5\].*shape \[6\]"),
    "mask too long": (torch.ones(10, dtype=torch.bool), r"mask of shape \[10\].*shape \[6\]"),
    "mask of two dimensions": (np.ones((6, 3), bool), r"mask of shape \[6, 3\]"),
    "one boolean": (True, r"mask of shape \[\]"),
    "mask of nothing": ([False] * 6, r"slots in index \(0\)"),
    "slice of nothing": (slice(5, 2), r"slots in index \(0\)"),
    "slice with step 0": (slice(None, None, 0), "step"),
    "slice of floats": (slice(0.5, 3), "integers"),
    "no dimension has an element": (np.zeros((2, 0), int), r"slots in index \(0\)"),
    "lists of several lengths": ([[1, 2], [3]], "whole numbers"),
    "a million million": (range(10**12), r"\(1000000000000\)"),
    "more than 64 bits count": (range(2**70), "1 to 1048576"),
    "none": (None, "whole numbers"),
    "ellipsis": (Ellipsis, "whole numbers"),
    "a set": ({1, 2}, "whole numbers"),
    "a tensor without memory": (torch.tensor([1], device="meta"), "whole numbers"),
    "a dtype that numpy lacks": (torch.tensor([1], dtype=torch.bfloat16), "whole numbers"),
}


@pytest.mark.parametrize("case", NO_INDEX)
def test_what_is_no_index_is_refused(buffer, case):
    index, words = NO_INDEX[case]
    with pytest.raises(InvalidArgumentError, match=words):
        buffer.sample_by_index(index)


def test_an_empty_buffer_has_no_last_row(make_buffer):
    with pytest.raises(SlotIndexError, match="index -1 holds no row: the buffer has 0 rows"):
        make_buffer(4).sample_by_index(-1)


# -- fields -----------------------------------------------------------------------------------------------------------------------------------

FIELDS = {
    "a tuple": ([("next", "obs")], {("next", "obs")}),
    "a name with a dot": (["next.obs"], {("next", "obs")}),
    "one name": ("action", {"action"}),
    "a mixture": ([("next", "obs"), "action", ("done",)], {("next", "obs"), "action", "done"}),
    "a parent": (["next", "index"], {("next", "obs"), "index"}),
    "keys": ({"obs": 1}.keys(), {"obs"}),
    "none": (None, {"obs", "action", "done", ("next", "obs"), "index", "row_id"}),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields_are_names_and_tuples_of_them(buffer, case):
    fields, expected = FIELDS[case]
    for batch in (buffer.sample_by_index_fields([1, 2], fields), next(buffer.create_epoch_iterator(2, fields=fields))):
        assert set(batch.keys(include_nested=True, leaves_only=True)) == expected


READS = {
    "by index": lambda buffer, fields: buffer.sample_by_index_fields([0], fields),
    "epoch": lambda buffer, fields: buffer.create_epoch_iterator(2, fields=fields),
    "stream": lambda buffer, fields: buffer.stream(2, fields=fields),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    "fields", [[], (), [("next", "obs"), "next.obs"], ["next", "next.obs"], ["obs", "obs"], ["nothing"], [("obs", "deeper")]], ids=str
)
def test_fields_that_are_not_there_or_come_twice_or_not_at_all_are_refused(buffer, kind, read, fields):
    if read == "stream" and not kind.streams:
        pytest.skip("this kind of buffer has no streams")
    with pytest.raises(FieldNotFoundError):
        READS[read](buffer, fields)


@pytest.mark.parametrize("fields", [3, [3], [()], [None], [b"obs"], [["obs"]]], ids=str)
def test_what_is_no_name_is_refused(buffer, fields):
    with pytest.raises(InvalidArgumentError, match="must be names"):
        buffer.sample_by_index_fields([0], fields)
