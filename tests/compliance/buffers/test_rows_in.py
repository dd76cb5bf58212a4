"""What users give is stored as it is, or refused with the field and the rule: on every way into every kind of buffer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import LazyStackedTensorDict, MemoryMappedTensor, NonTensorData, TensorDict, tensorclass

from conftest import numbers, rows
from tdreplay.errors import CodecError, InvalidArgumentError, SchemaError
from tdreplay_client import RemoteReplayBuffer

# -- dicts --------------------------------------------------------------------------------------------------------------------------------------


def test_dicts_of_arrays_numbers_and_lists_are_rows(way):
    for n in range(3):
        obs = np.full(3, n, np.float32)
        way.put({"obs": obs, "action": n, "done": n % 2 == 0, "next": {"obs": [n + 1.0] * 3}})
    assert numbers(way.stored) == [0, 1, 2]


def test_a_dict_is_a_batch_of_as_many_rows_as_its_values_have(make_buffer):
    buffer, batch = make_buffer(10), rows(4)
    buffer.add_batch({"obs": batch["obs"].numpy(), "action": [0, 1, 2, 3], "done": batch["done"], "next": {"obs": list(batch["next", "obs"])}})
    buffer.add_batch({"obs": batch["obs"], "action": range(4), "done": batch["done"].tolist(), "next": batch["next"]})
    assert numbers(buffer.sample_all()) == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        ({"x": torch.zeros(3), "y": [1, 2]}, SchemaError, "'y'.*2 rows.*3"),
        ({"x": torch.zeros(3), "y": 1.0}, SchemaError, "'y'.*float.*no dimension"),
        ({"x": [[1, 2], [3]]}, SchemaError, "'x'.*equally long"),
        ({"x": [np.zeros(2), np.zeros(3)]}, SchemaError, "'x'.*alike"),
        ({"x": []}, InvalidArgumentError, "empty"),
        ({}, SchemaError, "at least one field"),
        ({"x": torch.zeros(2), "y": {}}, SchemaError, "'y'.*empty dict"),
        ({"x": torch.zeros(2), "y": TensorDict({"z": torch.zeros(2, 3)}, [2, 3])}, SchemaError, r"'y'.*\[2, 3\]"),
        ({"x": np.ma.masked_array(np.zeros(2), [0, 1])}, CodecError, "'x'.*mask"),
        ({"x": torch.zeros(2, device="meta")}, CodecError, "'x'"),
        ({1: torch.zeros(2)}, CodecError, "'1'.*text"),
        ({"x": np.array(["a", "b"])}, CodecError, "'x'"),
    ],
)
def test_a_dict_that_is_no_batch_is_refused(make_buffer, batch, error, words):
    buffer = make_buffer(10)
    with pytest.raises(error, match=words):
        buffer.add_batch(batch)
    assert buffer.state().schema is None


def test_arrays_of_any_layout_are_first_and_later_rows(way):
    whole = np.arange(6, dtype=np.float32)
    frozen = whole[:3].copy()
    frozen.setflags(write=False)
    for array in (whole[2::-1], whole[:3].astype(">f4").astype("<f4"), frozen, whole[::2], whole[2::-1]):
        way.put({"x": array})
    assert way.stored["x"].tolist() == [[2, 1, 0], [0, 1, 2], [0, 1, 2], [0, 2, 4], [2, 1, 0]]


# -- a first row that is refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        {"o": [0, 0], "x": "text"},
        {"o": [[0], [0, 0]]},
        {"o": [2**70, 0]},
        {"o": object()},
        {"o": np.ma.masked},
        {"o": np.ma.masked_array(np.zeros(2), [0, 1])},
        {"o": NonTensorData("text")},
        {"o": (lambda held: [held.append(held), held][1])([])},
        {"o": torch.eye(2).to_sparse()},
        {"o": None},
        {"o": "text"},
        {"o": [torch.zeros(2), torch.zeros(2).double()]},
        {"o": [0, 0], "index": 0.5},
        {"o": torch.zeros(2, dtype=torch.complex128)},
        {"o": torch.zeros(2, device="meta")},
        {"o": {}},
    ],
    ids=lambda bad: re.sub(" at 0x[0-9a-f]+", "", str(bad))[:40],  # The same in every process.
)
def test_a_first_row_that_was_refused_fixes_nothing(way, bad):
    with pytest.raises(InvalidArgumentError, match=r"'o'|'x'|'index'"):
        way.put(bad)
    way.put({"o": np.zeros(2, np.float32)})
    assert way.stored["o"].tolist() == [[0, 0]]


def test_a_dict_that_holds_itself_is_refused(make_buffer):
    row: dict[str, Any] = {"x": 1}
    row["itself"] = row
    with pytest.raises(SchemaError, match=r"'itself\.itself.*256 characters"):
        make_buffer(10).add(row)


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_a_tensor_that_is_more_than_its_numbers_is_refused(way):
    with pytest.raises(CodecError, match="'o': MaskedTensor cannot travel"):
        way.put({"o": torch.masked.masked_tensor(torch.zeros(2), torch.tensor([True, False]))})
    way.put({"o": torch.zeros(2)})
    assert way.stored["o"].tolist() == [[0, 0]]


class Annotated(np.ndarray):
    """An array of another type, which is no more than its numbers."""


def test_a_later_array_that_is_more_than_its_numbers_is_refused(way):
    way.put({"o": np.zeros(2, np.float32)})
    with pytest.raises(CodecError, match=r"'o': a masked array cannot travel"):
        way.put({"o": np.ma.masked_array(np.ones(2, np.float32), [0, 1])})
    way.put({"o": np.ones(2, np.float32).view(Annotated)})
    assert way.stored["o"].tolist() == [[0, 0], [1, 1]]


# -- structure --------------------------------------------------------------------------------------------------------------------------------


def lazy(*parts: dict[str, Any]) -> LazyStackedTensorDict:
    return LazyStackedTensorDict(*(TensorDict(part) for part in parts), stack_dim=0)


LOST = {
    "keys that not all rows have": (lambda: lazy({"x": torch.zeros(2)}, {"x": torch.zeros(2), "y": torch.zeros(1)}), "'y'.*some rows"),
    "nested keys that not all rows have": (lambda: lazy({"n": {"x": torch.zeros(2)}}, {"n": {"y": torch.zeros(2)}}), r"'n\.x', 'n\.y'.*some rows"),
    "rows of several dtypes": (lambda: lazy({"x": torch.zeros(2)}, {"x": torch.zeros(2).double()}), "'x'.*dtype.*float32.*float64"),
    "tensors and TensorDicts": (lambda: lazy({"x": torch.zeros(2)}, {"x": {"y": torch.zeros(2)}}), "'x'.*TensorDict.*float32"),
    "an inner batch size": (lambda: TensorDict({"ag": TensorDict({"a": torch.zeros(4, 3)}, [4, 3])}, [4]), r"'ag'.*\[4, 3\].*\[4\]"),
    "a smaller inner batch size": (lambda: _smaller(), r"'ag'.*\[4\].*\[4, 3\]"),
    "an empty TensorDict": (lambda: TensorDict({"x": torch.zeros(4), "e": TensorDict({}, [4])}, [4]), "'e'.*empty"),
    "a nested empty TensorDict": (lambda: TensorDict({"x": torch.zeros(4), "d": {"e": TensorDict({}, [4])}}, [4]), r"'d\.e'.*empty"),
}


def _smaller() -> TensorDict:
    inner = TensorDict({"a": torch.zeros(4, 3)}, [4, 3])
    outer = TensorDict({"ag": inner}, [4, 3])
    inner.batch_size = [4]
    return outer


@pytest.mark.parametrize("case", LOST)
def test_what_would_be_lost_is_refused_by_its_name(make_buffer, case):
    make, words = LOST[case]
    buffer = make_buffer(10)
    data = make()
    if data["ag"].batch_size == data.batch_size if "ag" in data.keys() else False:  # noqa: SIM118 - a TensorDict iterates over its rows.
        pytest.skip("this version of tensordict does not make such a one")
    with pytest.raises(SchemaError, match=words):
        buffer.add_batch(data)
    assert buffer.state().schema is None


@tensorclass
class Step:
    obs: torch.Tensor
    reward: torch.Tensor


def column(n: int) -> TensorDict:
    return TensorDict({"x": torch.tensor([n, n + 2.0])}, [2])


KEPT: dict[str, Callable[[], Any]] = {
    "a lazy stack": lambda: lazy({"x": torch.tensor([0.0, 1])}, {"x": torch.tensor([2.0, 3])}),
    "a lazy stack along the second dimension": lambda: LazyStackedTensorDict(
        *(TensorDict({"x": torch.tensor([n, n + 2.0])}, [2]) for n in (0, 1)), stack_dim=1
    ),
    "a nested lazy stack": lambda: lazy({"x": torch.tensor([0.0, 1])}, {"x": torch.tensor([2.0, 3])}),
    "expanded and strided": lambda: TensorDict({"x": torch.arange(4.0).view(2, 2).T.contiguous().T}, [2]),
    "with a gradient": lambda: TensorDict({"x": torch.arange(4.0).view(2, 2).requires_grad_()}, [2]),
    "parameters": lambda: TensorDict({"x": torch.nn.Parameter(torch.arange(4.0).view(2, 2))}, [2]),
    "memory-mapped": lambda: TensorDict({"x": MemoryMappedTensor.from_tensor(torch.arange(4.0).view(2, 2))}, [2]),
    "locked": lambda: TensorDict({"x": torch.arange(4.0).view(2, 2)}, [2]).lock_(),
    "with a device": lambda: TensorDict({"x": torch.arange(4.0).view(2, 2)}, [2], device="cpu"),
    "negated": lambda: TensorDict({"x": torch.complex(torch.zeros(2, 2), -torch.arange(4.0).view(2, 2)).conj().imag}, [2]),
}


@pytest.mark.parametrize("case", KEPT)
def test_whatever_holds_the_rows_they_come_back(make_buffer, case):
    buffer = make_buffer(10)
    buffer.add_batch(KEPT[case]())
    buffer.add(KEPT[case]()[0])
    assert buffer.sample_all()["x"].tolist() == [[0, 1], [2, 3], [0, 1]]


def test_a_tensorclass_comes_back_as_a_tensordict(make_buffer):
    buffer = make_buffer(10)
    buffer.add_batch(Step(obs=torch.zeros(2, 3), reward=torch.ones(2), batch_size=[2]))
    buffer.add(TensorDict({"obs": torch.ones(3), "reward": torch.tensor(2.0)}))
    assert buffer.sample_all()["reward"].tolist() == [1, 1, 2]


def test_a_row_of_another_batch_size_is_refused_by_a_writer(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=10) as buffer, buffer.writer() as writer:
        writer.append(TensorDict({"x": torch.zeros(3, 2)}, [3]))
        with pytest.raises(SchemaError, match="batch_size"):
            writer.append(TensorDict({"x": torch.zeros(3, 2)}, []))
        writer.append(TensorDict({"x": torch.ones(3, 2)}, [3]))
        writer.flush()
        assert buffer.sample_all().batch_size == (2, 3)
