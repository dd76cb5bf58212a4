"""Importance weights, against their formula."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from tdreplay.errors import InvalidArgumentError
from tdreplay.priorities import importance_weights, row_ids_of

PROBABILITIES = [0.5, 0.1, 0.1, 0.02]


def drawn(probabilities=PROBABILITIES, size=10, least=0.01, **fields):
    """A batch as a table with priorities gives it."""
    rows = len(probabilities)
    columns = {
        "row_id": torch.arange(rows),
        "probability": torch.tensor(probabilities, dtype=torch.float64),
        "table_size": torch.tensor(size).expand(rows),
        "min_probability": torch.tensor(least, dtype=torch.float64).expand(rows),
    }
    return TensorDict(columns | fields, [rows])


@pytest.mark.parametrize("beta", [0, 0.4, 1.0, 2.5])
@pytest.mark.parametrize("normalize", ["batch", "table", None])
def test_weights_follow_the_formula(beta, normalize):
    raw = [(10 * p) ** -beta for p in PROBABILITIES]
    largest = {"batch": max(raw), "table": (10 * 0.01) ** -beta, None: 1.0}[normalize]
    weights = importance_weights(drawn(), beta, normalize)
    assert weights.dtype is torch.float32
    torch.testing.assert_close(weights, torch.tensor([weight / largest for weight in raw], dtype=torch.float32))


def test_a_batch_of_a_table_without_priorities_has_weights_of_1():
    batch = TensorDict({"row_id": torch.arange(3), "x": torch.zeros(3, 2)}, [3])
    assert importance_weights(batch, 0.6).tolist() == [1.0, 1.0, 1.0]


def test_rows_that_are_batches_have_weights_of_the_batch_size():
    columns = {name: column.unsqueeze(1).expand(4, 3) for name, column in drawn().items()}
    assert importance_weights(TensorDict(columns, [4, 3]), 0.5).shape == (4, 3)


@pytest.mark.parametrize("beta", [-0.1, math.nan, math.inf, "0.5", True, None])
def test_a_beta_out_of_its_range_is_refused(beta):
    with pytest.raises(InvalidArgumentError, match="beta"):
        importance_weights(drawn(), beta)


def test_an_unknown_normalization_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"normalize .'sum'. must be batch, table or None"):
        importance_weights(drawn(), 0.5, "sum")


@pytest.mark.parametrize(("missing", "normalize"), [("table_size", "batch"), ("min_probability", "table")])
def test_a_field_that_is_missing_is_named(missing, normalize):
    with pytest.raises(InvalidArgumentError, match=f"no field '{missing}'"):
        importance_weights(drawn().exclude(missing), 0.5, normalize)


def test_a_batch_that_does_not_say_how_it_was_drawn_is_refused():
    with pytest.raises(InvalidArgumentError, match="no field 'row_id'"):
        importance_weights(TensorDict({"x": torch.zeros(2)}, [2]), 0.5)


def test_row_ids_come_once_a_row():
    trajectories = TensorDict({"row_id": torch.tensor([7, 9]).unsqueeze(1).expand(2, 5)}, [2, 5])
    assert row_ids_of(trajectories).tolist() == [7, 9]
    assert row_ids_of(drawn()).tolist() == [0, 1, 2, 3]
    with pytest.raises(InvalidArgumentError, match="no field 'row_id'"):
        row_ids_of(drawn().exclude("row_id"))
