"""Rows as TensorDicts, and checks that need them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from benchmarks.checks import Checked, Masses, check_samples
from benchmarks.work import Columns, Live, Work, WrongRowsError

__all__ = ["as_arrays", "as_tensordict", "check_owned", "check_tensordicts", "parts"]

FILL_BYTES = 64 << 20
FOLLOWING = 24
"""Batches after one that is written to: more than a stream has on its way."""


def as_tensordict(columns: Columns) -> TensorDict:
    """The rows as a TensorDict of batch size [n]."""
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    return TensorDict(tensors, batch_size=[len(columns["reward"])])


def as_arrays(batch: TensorDictBase) -> Columns:
    """The fields of a batch, as views of it."""
    return {name: column.numpy() for name, column in batch.items()}


def parts(work: Work, size: int) -> Iterator[TensorDict]:
    """The rows ``[0, size)``, in parts that fit into memory."""
    step = max(1, FILL_BYTES // work.row_bytes)
    return (as_tensordict(work.rows(first, min(step, size - first))) for first in range(0, size, step))


def check_tensordicts(work: Checked, live: Live, sample: Callable[[], Any], masses: Masses | None = None) -> None:
    """As `check_samples`, of a source of TensorDicts."""
    check_samples(work, live, lambda: as_arrays(sample()), masses)


def check_owned(work: Checked, live: Live, sample: Callable[[], Any], following: int = FOLLOWING) -> None:
    """A batch owns its memory: it does not change when others come, and who writes to it changes none of the `following` ones.

    Raises:
        WrongRowsError: it does not.
    """
    kept, spoiled = sample(), sample()
    copy = kept.clone()
    spoiled.zero_()
    for _ in range(following):
        work.check(as_arrays(sample()), live)
    if not all(torch.equal(kept[name], copy[name]) for name in copy.keys()):  # noqa: SIM118 - a TensorDict iterates over its rows.
        raise WrongRowsError("a batch changed after it was taken")
