"""What is declared of a system field holds, for each of them, in every kind of buffer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from conftest import numbers, rows
from tdreplay.errors import FieldNotFoundError, SchemaError
from tdreplay.system_fields import INDEX, PERSISTED_FIELDS, ROW_ID, SYSTEM_FIELDS, SystemField
from tdreplay_client import RemoteReplayBuffer

OWN = {"obs", "action", "done", "next"}

every = pytest.mark.parametrize("field", SYSTEM_FIELDS, ids=lambda field: field.name)


def test_their_names_are_all_different():
    assert len({field.name for field in SYSTEM_FIELDS}) == len(SYSTEM_FIELDS)


@every
@pytest.mark.parametrize("name", ["{}", "{}.below"])
def test_a_users_field_cannot_have_its_name_or_lie_below_it(make_buffer, field: SystemField, name: str):
    *parents, leaf = name.format(field.name).split(".")
    value = {leaf: torch.zeros(2, 3)}
    for parent in parents:
        value = {parent: value}
    buffer = make_buffer(8)
    for batch in ({"x": torch.zeros(2), **value}, TensorDict({"x": torch.zeros(2), **value}, [2])):
        with pytest.raises(SchemaError, match=f"'{name.format(field.name)}' is reserved.*{field}".replace("[", r"\[")):
            buffer.add_batch(batch)
    assert buffer.state().schema is None


def test_a_batch_has_those_that_are_sent_and_no_others(make_buffer):
    buffer = make_buffer(8)
    buffer.add_batch(rows(11))
    sent = {field.name: (field.dtype, (8, *field.shape)) for field in SYSTEM_FIELDS if field.sent}
    for batch in (buffer.sample_all(), buffer.sample_batch(8), buffer.sample_by_index(range(8)), next(buffer.create_epoch_iterator(8))):
        assert {name: (batch[name].dtype, tuple(batch[name].shape)) for name in batch.keys() - OWN} == sent


@every
def test_a_request_may_name_those_that_are_nameable(make_buffer, field: SystemField):
    buffer = make_buffer(8)
    buffer.add_batch(rows(11))
    if field.nameable:
        batch = buffer.sample_by_index_fields([5, 2], [field.name])
        assert set(batch.keys()) == {field.name}
        assert (batch[field.name].dtype, batch[field.name].shape) == (field.dtype, (2, *field.shape))
    else:
        with pytest.raises(FieldNotFoundError, match=field.name):
            buffer.sample_by_index_fields([5, 2], [field.name])


def test_a_row_that_is_a_batch_has_one_value_of_each_expanded_to_its_size(make_buffer):
    buffer = make_buffer(8)
    buffer.add_batch(TensorDict({"x": torch.arange(12.0).view(2, 3, 2)}, [2, 3]))
    batch = buffer.sample_all()
    for field in SYSTEM_FIELDS:
        if field.sent:
            assert batch[field.name].shape == (2, 3, *field.shape)
            assert (batch[field.name] == batch[field.name][:, :1]).all()


def test_a_batch_that_was_sampled_can_be_inserted_again_without_them(make_buffer):
    buffer = make_buffer(10)
    buffer.add_batch(rows(4))
    fields = buffer.state().schema
    buffer.add_batch(buffer.sample_all())
    buffer.add_batch(buffer.sample_by_index_fields([3], [*OWN, *(field.name for field in SYSTEM_FIELDS if field.nameable)]))
    buffer.add(dict(buffer.sample_by_index(2).items()))
    assert buffer.state().schema == fields
    assert sorted(numbers(buffer.sample_all())) == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]


def test_a_table_and_its_checkpoint_keep_those_that_are_persisted_and_no_others(own_server, tmp_path):
    with own_server(data_dir=tmp_path) as address, RemoteReplayBuffer(address, buffer_size=8) as buffer:
        buffer.add_batch(rows(11))
        made = buffer.checkpoint("one")
        kept = 8 * sum(field.row_bytes for field in (*buffer.state().schema.fields, *PERSISTED_FIELDS))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.memmap")) == kept
    assert sum(path.stat().st_size for path in Path(made.path).glob("field_*")) == made.bytes == kept


def test_the_index_is_the_slot_and_the_row_id_counts_all_rows(make_buffer, kind):
    buffer = make_buffer(8)
    buffer.add_batch(rows(11))
    batch = buffer.sample_by_index([7, 0, 2, 7])
    assert batch[INDEX.name].tolist() == [7, 0, 2, 7]
    assert numbers(batch) == [7, 8, 10, 7]
    assert batch[ROW_ID.name].tolist() == kind.row_ids([7, 8, 10, 7], buffer_size=8)


def test_what_is_done_to_the_index_of_a_batch_leaves_the_callers_index_as_it_is(make_buffer):
    buffer = make_buffer(8)
    buffer.add_batch(rows(8))
    mine = np.array([3, 1])
    buffer.sample_by_index(mine)[INDEX.name].zero_()
    assert mine.tolist() == [3, 1]
