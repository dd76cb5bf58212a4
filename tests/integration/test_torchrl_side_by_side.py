"""What TorchRL's users do with their buffer: with TorchRL's own storage in files, and with a buffer of tdreplay, in process and remote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer

from tdreplay_client.torchrl import RemoteTensorDictReplayBuffer
from tdreplay_server import ReplayBuffer
from tdreplay_server.torchrl_buffer import TorchRLReplayBuffer
from torchrl_steps import steps

SIZE = 50
BATCH = 16


@pytest.fixture(params=["in process", "remote"])
def ours(request, address, table) -> Iterator[TensorDictReplayBuffer]:
    if request.param == "remote":
        with RemoteTensorDictReplayBuffer(address, table=table, buffer_size=SIZE, batch_size=BATCH) as remote:
            yield remote
    else:
        with ReplayBuffer("cpu", "cpu", SIZE) as buffer:
            yield TorchRLReplayBuffer(buffer, batch_size=BATCH)


@pytest.fixture
def theirs(tmp_path: Path) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(storage=LazyMemmapStorage(SIZE, scratch_dir=tmp_path / "theirs"), batch_size=BATCH)


def description(data: TensorDict) -> dict[object, object]:
    """What two batches have in common whatever was drawn: batch size, names of dimensions, keys, shapes, dtypes, devices."""
    fields = {key: (value.shape, value.dtype, value.device) for key, value in data.items(include_nested=True, leaves_only=True)}
    return {"batch": data.batch_size, "names": data.names, **fields}


CALLS = {
    "sample": lambda buffer: buffer.sample(),
    "sample of a size": lambda buffer: buffer.sample(1),
    "sample with its info": lambda buffer: buffer.sample(return_info=True)[0],
    "next of the iteration": lambda buffer: next(iter(buffer)),
    "all": lambda buffer: buffer[:],
    "a row": lambda buffer: buffer[3],
    "the last row": lambda buffer: buffer[-1],
    "a slice": lambda buffer: buffer[2:8:2],
    "some rows": lambda buffer: buffer[torch.tensor([4, 1, 4])],
    "a list": lambda buffer: buffer[[4, 1]],
    "a mask": lambda buffer: buffer[torch.arange(len(buffer)) % 3 == 0],
    "in order": lambda buffer: buffer.read_all_in_order(5),
}


@pytest.mark.filterwarnings("ignore:Got conflicting batch_sizes")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("shape", [(), (4,)], ids=["steps", "trajectories"])
@pytest.mark.parametrize("rows", [SIZE // 2, SIZE + 7], ids=["filling", "wrapped"])
def test_a_batch_is_as_torchrl_s_own(ours, theirs, call, shape, rows):
    for first in range(0, rows, 5):
        given = [buffer.extend(steps(first, min(5, rows - first), *shape)) for buffer in (ours, theirs)]
        assert given[0].tolist() == given[1].tolist()
    mine, wanted = call(ours).exclude("row_id"), call(theirs)
    assert description(mine) == description(wanted)
    assert type(mine) is TensorDict
    if "sample" not in call.__code__.co_names and "iter" not in call.__code__.co_names:
        assert (mine == wanted).all()


def test_add_and_extend_give_slots_and_sampled_rows_may_be_stored_again(ours, theirs):
    for buffer in (ours, theirs):
        row, rows = steps(0, 1)[0], steps(1, 3)
        assert int(buffer.add(row)) == 0
        assert buffer.extend(rows).tolist() == [1, 2, 3]
        assert (len(buffer), buffer.write_count) == (4, 4)
        assert buffer.extend(buffer[[1, 2, 3]]).tolist() == [4, 5, 6]  # With the field index, which says other slots.
        assert buffer[4:]["index"].tolist() == [4, 5, 6]
    assert (row.get("index", None) is None, rows.get("index", None) is None) == (True, True)


def test_more_rows_than_there_are_slots_leave_the_last_ones(ours, theirs):
    for buffer in (ours, theirs):
        buffer.extend(steps(0, 2 * SIZE + 3))
    assert (ours[:].exclude("row_id") == theirs[:]).all()
    assert (len(ours), ours.write_count, ours.stats()["capacity"]) == (SIZE, theirs.write_count, SIZE)


def test_info_has_the_slots(ours, theirs):
    for buffer in (ours, theirs):
        buffer.extend(steps(0, 20))
        batch, info = buffer.sample(return_info=True)
        assert (info["index"] == batch["index"]).all()
        assert (batch["obs"][:, 0] == info["index"]).all()


def test_empty_leaves_no_row_and_the_buffer_goes_on(ours, theirs):
    for buffer in (ours, theirs):
        buffer.extend(steps(0, 20))
        buffer.empty()
        assert (len(buffer), buffer.write_count) == (0, 0)
        buffer.extend(steps(100, 5))
        assert buffer[:]["obs"][:, 0].tolist() == [100, 101, 102, 103, 104]
        buffer.empty(empty_write_count=False)
        assert (len(buffer), buffer.write_count) == (0, 5)


def test_trajectories_are_found_after_the_ring_wrapped(ours, theirs):
    from torchrl.data import traj

    for buffer in (ours, theirs):
        for episode in range(12):
            data = steps(10 * episode, 6)
            data["done"] = torch.arange(6).eq(5)
            data["episode"] = torch.full((6,), episode)
            buffer.extend(data)
    mine, wanted = (buffer.query(traj.length >= 6, trajectory_key="episode") for buffer in (ours, theirs))
    assert [list(one.obs[:, 0]) for one in mine] == [list(one.obs[:, 0]) for one in wanted]
