"""Bad input is an error that names the value and the rule, and changes nothing: not the size, not the pointer, not a byte on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import torch
from tensordict import LazyStackedTensorDict, NonTensorData, TensorDict

from compliance.kinds import MakeBuffer
from conftest import files_under, numbers, rows
from tdreplay import errors
from tdreplay.api import BaseReplayBuffer
from tdreplay.v1.replay_buffer_pb2 import RewindRequest
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import RemoteReplayBuffer

Step = Callable[[BaseReplayBuffer], Any]
HUGE = (1 << 20) + 1


def renamed(**changes: Any) -> TensorDict:
    """Two rows with some fields changed; None leaves a field out."""
    batch = rows(2)
    for name, value in changes.items():
        batch = batch.exclude(name) if value is None else batch.set(name, value)
    return batch


BAD_ROWS: dict[str, tuple[Callable[[], Any], type[Exception], list[str]]] = {
    "missing field": (lambda: renamed(action=None), errors.SchemaError, ["'action'", "expected I64[]", "got none"]),
    "missing nested field": (lambda: renamed(next=None), errors.SchemaError, ["'next.obs'", "expected F32[3]", "got none"]),
    "extra field": (lambda: renamed(extra=torch.zeros(2, 5)), errors.SchemaError, ["'extra'", "expected none", "got F32[5]"]),
    "misshapen field": (lambda: renamed(obs=torch.zeros(2, 4)), errors.SchemaError, ["'obs'", "expected F32[3]", "got F32[4]"]),
    "one dimension more": (lambda: renamed(obs=torch.zeros(2, 3, 1)), errors.SchemaError, ["'obs'", "expected F32[3]", "got F32[3, 1]"]),
    "wrong dtype": (lambda: renamed(action=torch.zeros(2)), errors.SchemaError, ["'action'", "expected I64[]", "got F32[]"]),
    "rows that are batches": (lambda: TensorDict({"obs": torch.zeros(2, 3)}, [2, 3]), errors.SchemaError, ["'action'", "missing"]),
    "reserved name index": (lambda: renamed(index=torch.zeros(2)), errors.SchemaError, ["'index'", "reserved"]),
    "reserved name row_id": (lambda: renamed(row_id=torch.zeros(2)), errors.SchemaError, ["'row_id'", "reserved"]),
    "reserved name above a nested key": (
        lambda: renamed(row_id=TensorDict({"a": torch.zeros(2)}, [2])),
        errors.SchemaError,
        ["'row_id.a'", "reserved"],
    ),
    "reserved name __metadata__": (lambda: renamed(__metadata__=torch.zeros(2)), errors.SchemaError, ["'__metadata__'", "reserved"]),
    "name too long": (lambda: renamed(**{"x" * 300: torch.zeros(2)}), errors.SchemaError, ["256 characters"]),
    "empty batch": (lambda: rows(2)[:0], errors.InvalidArgumentError, ["[0]", "at least one row"]),
    "no batch dimension": (lambda: rows(2)[0], errors.InvalidArgumentError, ["[]", "[n, ...]"]),
    "no field": (lambda: TensorDict({}, [2]), errors.SchemaError, ["at least one field"]),
    "not a TensorDict": (lambda: [rows(1), rows(1)], errors.CodecError, ["list", "TensorDict"]),
    "non-tensor data": (lambda: renamed(text=NonTensorData("hello", batch_size=[2])), errors.CodecError, ["'text'", "NonTensorData"]),
    "key with a dot": (lambda: renamed(**{"a.b": torch.zeros(2)}), errors.CodecError, ["'a.b'", "'.'"]),
    "unknown dtype": (lambda: renamed(wide=torch.zeros(2, dtype=torch.complex128)), errors.CodecError, ["'wide'", "complex128"]),
    "sparse": (lambda: renamed(obs=torch.eye(3)[:2].to_sparse()), errors.CodecError, ["'obs'", "dense"]),
    "rows of several shapes": (
        lambda: LazyStackedTensorDict(*(TensorDict({"x": torch.zeros(n)}) for n in (2, 3)), stack_dim=0),
        errors.CodecError,
        ["'x'", "shape"],
    ),
    "too many dimensions": (lambda: renamed(deep=torch.zeros(2, *[1] * 16)), errors.CodecError, ["'deep'", "16 dimensions"]),
}

BAD_CALLS: dict[str, tuple[Step, type[Exception], list[str]]] = {
    "batch size 0": (lambda b: b.sample_batch(0), errors.InvalidArgumentError, ["batch_size (0)", "1 to 1048576"]),
    "batch size negative": (lambda b: b.sample_random(-3), errors.InvalidArgumentError, ["batch_size (-3)"]),
    "batch size above the limit": (lambda b: b.sample_batch(HUGE), errors.InvalidArgumentError, [f"batch_size ({HUGE})", "1 to 1048576"]),
    "batch size not whole": (lambda b: b.sample_batch(2.5), errors.InvalidArgumentError, ["batch_size (2.5)"]),
    "batch size true": (lambda b: b.sample_batch(True), errors.InvalidArgumentError, ["batch_size (True)"]),
    "epoch batch size 0": (lambda b: b.create_epoch_iterator(0), errors.InvalidArgumentError, ["batch_size (0)"]),
    "epoch n_epochs 0": (lambda b: b.create_epoch_iterator(4, 0), errors.InvalidArgumentError, ["n_epochs (0)"]),
    "epoch n_epochs negative": (lambda b: b.create_epoch_iterator(4, -1), errors.InvalidArgumentError, ["n_epochs (-1)"]),
    "epoch seed negative": (lambda b: b.create_epoch_iterator(4, shuffle=True, seed=-1), errors.InvalidArgumentError, ["seed (-1)"]),
    "epoch unknown field": (lambda b: b.create_epoch_iterator(4, fields=["nope"]), errors.FieldNotFoundError, ["'nope'", "'obs'"]),
    "epoch seed beyond 64 bits": (lambda b: b.create_epoch_iterator(4, shuffle=True, seed=2**63), errors.InvalidArgumentError, [f"seed ({2**63})"]),
    "epoch shuffle no boolean": (
        lambda b: b.create_epoch_iterator(4, shuffle="no"),
        errors.InvalidArgumentError,
        ["shuffle ('no')", "True or False"],
    ),
    "epoch drop_last no boolean": (lambda b: b.create_epoch_iterator(4, drop_last=2), errors.InvalidArgumentError, ["drop_last (2)"]),
    "batch size beyond 64 bits": (lambda b: b.sample_batch(2**70), errors.InvalidArgumentError, [f"batch_size ({2**70})"]),
    "batch size a tensor of floats": (lambda b: b.sample_batch(torch.tensor(2.0)), errors.InvalidArgumentError, ["batch_size (tensor(2.))"]),
    "n_epochs beyond 64 bits": (lambda b: b.create_epoch_iterator(4, 2**63), errors.InvalidArgumentError, [f"n_epochs ({2**63})"]),
    "reset beyond 64 bits": (lambda b: b.reset(2**63), errors.InvalidArgumentError, [f"buffer_size ({2**63})"]),
    "next batch size 0": (lambda b: b.get_next_batch(0), errors.InvalidArgumentError, ["batch_size (0)"]),
    "number of batches of 0": (lambda b: b.calculate_num_batches(0), errors.InvalidArgumentError, ["batch_size (0)"]),
    "steps n_epochs negative": (lambda b: b.get_steps_and_iterator(-1, 5, 4), errors.InvalidArgumentError, ["n_epochs (-1)"]),
    "steps max_iter negative": (lambda b: b.get_steps_and_iterator(0, -5, 4), errors.InvalidArgumentError, ["max_iter (-5)"]),
    "index out of range": (lambda b: b.sample_by_index([0, 6]), errors.SlotIndexError, ["index 6", "6 rows"]),
    "index beyond the buffer": (lambda b: b.sample_by_index([10**12]), errors.SlotIndexError, [f"index {10**12}"]),
    "index negative": (lambda b: b.sample_by_index([0, -7]), errors.SlotIndexError, ["index -7", "6 rows"]),
    "index empty": (lambda b: b.sample_by_index([]), errors.InvalidArgumentError, ["slots in index (0)"]),
    "index too long": (lambda b: b.sample_by_index(torch.zeros(HUGE, dtype=torch.int64)), errors.InvalidArgumentError, [f"({HUGE})"]),
    "index of floats": (lambda b: b.sample_by_index([0.5]), errors.InvalidArgumentError, ["whole numbers"]),
    "index of booleans": (lambda b: b.sample_by_index([True, False]), errors.InvalidArgumentError, ["whole numbers"]),
    "index of several lengths": (lambda b: b.sample_by_index([[0], [1, 2]]), errors.InvalidArgumentError, ["whole numbers"]),
    "index of text": (lambda b: b.sample_by_index("01"), errors.InvalidArgumentError, ["whole numbers"]),
    "unknown field": (lambda b: b.sample_by_index_fields([0], ["obs", "nope"]), errors.FieldNotFoundError, ["'nope'", "'next.obs'"]),
    "field twice": (lambda b: b.sample_by_index_fields([0], ["obs", "obs"]), errors.FieldNotFoundError, ["each one once"]),
    "no field": (lambda b: b.sample_by_index_fields([0], []), errors.FieldNotFoundError, ["at least one field"]),
    "reset to 0": (lambda b: b.reset(0), errors.InvalidArgumentError, ["buffer_size (0)"]),
    "reset to a negative capacity": (lambda b: b.reset(-4), errors.InvalidArgumentError, ["buffer_size (-4)"]),
}


@pytest.fixture
def buffer(make_buffer: MakeBuffer) -> BaseReplayBuffer:
    made = make_buffer(10)
    made.add_batch(rows(6))
    return made


def assert_refused(buffer: BaseReplayBuffer, step: Step, error: type[Exception], words: list[str]) -> None:
    before = buffer.state()
    with pytest.raises(error) as raised:
        step(buffer)
    assert type(raised.value) is error
    assert [word for word in words if word not in str(raised.value)] == [], str(raised.value)
    assert buffer.state() == before
    assert numbers(buffer.sample_all()) == list(range(6))


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_do_not_fit_are_refused(buffer, case):
    make, error, words = BAD_ROWS[case]
    assert_refused(buffer, lambda b: b.add_batch(make()), error, words)


@pytest.mark.parametrize("case", ["missing field", "misshapen field", "wrong dtype", "extra field"])
def test_a_row_that_does_not_fit_is_refused(buffer, case):
    make, error, words = BAD_ROWS[case]
    assert_refused(buffer, lambda b: b.add(make()[0]), error, words)


@pytest.mark.parametrize("case", BAD_CALLS)
def test_calls_with_bad_arguments_are_refused(buffer, case):
    step, error, words = BAD_CALLS[case]
    assert_refused(buffer, step, error, words)


@pytest.mark.parametrize("case", ["no field", "key with a dot", "non-tensor data", "unknown dtype", "empty batch", "reserved name index"])
def test_a_refused_first_batch_leaves_the_schema_open(make_buffer, case):
    buffer = make_buffer(10)
    with pytest.raises(errors.ReplayError):
        buffer.add_batch(BAD_ROWS[case][0]())
    assert buffer.state().schema is None
    buffer.add_batch(TensorDict({"something else": torch.zeros(2)}, [2]))
    assert buffer.size == 2


def test_a_capacity_that_memory_cannot_hold_is_an_error_that_says_so(make_buffer):
    buffer = make_buffer(1 << 60)
    with pytest.raises(errors.ResourceExhaustedError, match=f"{1 << 60} rows of 21 bytes"):
        buffer.add_batch(rows(2).exclude("next"))
    assert buffer.state().schema is None
    buffer.reset(10)
    buffer.add_batch(rows(2))
    assert numbers(buffer.sample_all()) == [0, 1]


def test_a_row_above_the_message_limit_is_refused(make_buffer):
    buffer = make_buffer(2)
    with pytest.raises(errors.SchemaError, match=r"a row \(67108864 bytes\) must be at most"):
        buffer.add(TensorDict({"x": torch.zeros(64 << 20, dtype=torch.uint8)}))
    assert buffer.size == 0


@pytest.mark.parametrize(
    "step",
    [
        lambda b: b.sample_batch(4),
        lambda b: b.sample_all(),
        lambda b: b.create_epoch_iterator(4),
        lambda b: b.get_next_batch(4),
        lambda b: b.get_steps_and_iterator(2, 0, 4),
    ],
    ids=["sample_batch", "sample_all", "create_epoch_iterator", "get_next_batch", "get_steps_and_iterator"],
)
def test_an_empty_table_has_nothing_to_sample(make_buffer, step):
    with pytest.raises(errors.EmptyTableError, match="empty"):
        step(make_buffer(10))


def test_an_index_into_an_empty_table_is_an_index_error(make_buffer):
    with pytest.raises(IndexError, match="index 0 holds no row"):
        make_buffer(10).sample_by_index([0])


def test_an_epoch_ends_with_an_error_when_the_table_is_reset(buffer):
    iterator = buffer.create_epoch_iterator(1, 100)
    next(iterator)
    buffer.reset()
    with pytest.raises(errors.TableChangedError, match="reset"):
        list(iterator)


# -- load ---------------------------------------------------------------------------------------------------------------------------------------


def test_load_says_which_rows_are_missing_from_a_new_buffer(buffer, make_buffer, tmp_path):
    buffer.save(tmp_path / "six")
    fresh = make_buffer(10)
    with pytest.raises(errors.MissingRowsError, match=r"\[0, 6\)"):
        fresh.load(tmp_path / "six")
    assert fresh.size == 0


def test_load_says_which_rows_were_overwritten_since(buffer, tmp_path):
    buffer.save(tmp_path / "six")
    buffer.add_batch(rows(7, 6))
    before = buffer.state()
    with pytest.raises(errors.MissingRowsError, match=r"\[0, 6\).*outside \[3, 13\)"):
        buffer.load(tmp_path / "six")
    assert buffer.state() == before


def test_load_of_another_capacity_is_refused_while_there_are_rows(buffer, make_buffer, tmp_path):
    make_buffer(3).save(tmp_path / "three")
    assert_refused(buffer, lambda b: b.load(tmp_path / "three"), errors.MissingRowsError, ["buffer_size (3)", "10"])


def test_load_of_a_missing_file_is_a_file_not_found_error(buffer, tmp_path):
    with pytest.raises(FileNotFoundError):
        buffer.load(tmp_path / "nothing")


GOOD = {"format": 1, "buffer_size": 10, "data_size": 6, "pointer": 6, "write_count": 6}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps({**GOOD, "format": 2}),
        json.dumps({**GOOD, "data_size": 11}),
        json.dumps({**GOOD, "data_size": "6"}),
        json.dumps({**GOOD, "pointer": 5}),
        json.dumps({**GOOD, "buffer_size": 0}),
        json.dumps({**GOOD, "write_count": 1e3}),
        json.dumps({**GOOD, "format": True}),
        json.dumps({**GOOD, "format": 1.0}),
        json.dumps({**GOOD, "buffer_size": True}),
        json.dumps({**GOOD, "buffer_size": float("inf")}),
        json.dumps({**GOOD, "write_count": float("nan")}),
        json.dumps({**GOOD, "write_count": 2**63, "buffer_size": 2**64}),
        '{"buffer_size": ' + "9" * 5000 + "}",
        "[" * 100_000,
    ],
)
def test_load_of_a_broken_file_is_refused(buffer, tmp_path, text):
    (tmp_path / "broken.metadata").write_text(text)
    assert_refused(buffer, lambda b: b.load(tmp_path / "broken"), errors.InvalidArgumentError, ["broken.metadata"])


# -- over the wire alone ----------------------------------------------------------------------------------------------------------------------


def test_an_unknown_table_is_named(address):
    with pytest.raises(errors.TableNotFoundError, match="'nowhere'"):
        RemoteReplayBuffer(address, table="nowhere")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"buffer_size": 0}, "buffer_size (0)"),
        ({"buffer_size": 10, "write_count": -7}, "write_count (-7)"),
        ({"buffer_size": 10, "write_count": (1 << 63) - 1}, "write_count (9223372036854775807)"),
        ({"buffer_size": 10, "size": -2, "write_count": 5}, "size (-2)"),
        ({"buffer_size": 10, "size": 6, "write_count": 5}, "size (6)"),
        ({"buffer_size": 10, "size": 11, "write_count": 12}, "size (11)"),
    ],
)
@pytest.mark.parametrize("stored", [0, 6])
def test_a_rewind_to_what_cannot_be_is_refused(address, table, arguments, word, stored):
    with RemoteReplayBuffer(address, table=table, buffer_size=10) as buffer, grpc.insecure_channel(address) as channel:
        if stored:
            buffer.add_batch(rows(stored))
        before = buffer.state()
        with pytest.raises(grpc.RpcError) as raised:
            ReplayBufferServiceStub(channel).Rewind(RewindRequest(table=table, **arguments), timeout=10)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert word in raised.value.details()
        assert buffer.state() == before


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", "x" * 65, "\x00"])
def test_a_table_needs_a_plain_name(address, name):
    with pytest.raises(errors.InvalidArgumentError, match="a name must be"):
        RemoteReplayBuffer(address, table=name, buffer_size=4)


def test_a_table_that_is_there_must_agree(address, table):
    with RemoteReplayBuffer(address, table=table, buffer_size=4), RemoteReplayBuffer(address, table=table, buffer_size=4, storing_device="cpu"):
        with pytest.raises(errors.TableExistsError, match=r"buffer_size 4, not 5"):
            RemoteReplayBuffer(address, table=table, buffer_size=5)
        with pytest.raises(errors.TableExistsError, match=r"storing_device cpu, not cuda"):
            RemoteReplayBuffer(address, table=table, storing_device="cuda:0")


def test_a_storing_device_that_is_not_there_is_refused(address, table):
    with pytest.raises(errors.InvalidArgumentError, match="cuda:77"):
        RemoteReplayBuffer(address, table=table, buffer_size=4, storing_device="cuda:77")


def test_refused_rows_leave_every_byte_on_disk_as_it_was(own_server, tmp_path):
    with own_server(data_dir=tmp_path / "data", buffer_size=10) as address:
        with RemoteReplayBuffer(address) as buffer:
            buffer.add_batch(rows(6))
            before = files_under(tmp_path)
            assert any(before.values())
            for make, error, _ in BAD_ROWS.values():
                with pytest.raises(error):
                    buffer.add_batch(make())
            for step, error, _ in BAD_CALLS.values():
                with pytest.raises(error):
                    step(buffer)
            assert files_under(tmp_path) == before
