"""What users write, in every part of the public API: mypy accepts it as it stands, and knows the types of the results.

It is checked and not run. The lines that are wrong on purpose carry the error that mypy finds in them; one that became right is an error too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tensordict import TensorDict
from torch.utils.data import DataLoader
from typing_extensions import assert_type

from tdreplay.api import BaseReplayBuffer, Checkpoint, State
from tdreplay.epochs import Epochs
from tdreplay.errors import DeadlineError, EmptyTableError, ReplayError, SchemaError, ServerUnavailableError
from tdreplay_client import (
    AsyncBatchStream,
    AsyncEpochs,
    AsyncReplayBuffer,
    AsyncWriter,
    BatchStream,
    RemoteReplayBuffer,
    ReplayDataset,
    Sequences,
    Transitions,
    Writer,
    importance_weights,
    sequence_priorities,
)
from tdreplay_server import ReplayBuffer, ReplayServer, ServerConfig, ServerProcess, spawn_server


def train(buffer: BaseReplayBuffer, model: torch.nn.Module) -> None:
    """A loop that takes either buffer."""
    buffer.add({"obs": np.zeros(4, np.float32), "reward": 1.0, "done": False})
    buffer.add(TensorDict({"obs": torch.zeros(4), "reward": torch.tensor(1.0)}))
    buffer.add_batch(TensorDict({"obs": torch.zeros(8, 4), "reward": torch.zeros(8)}, [8]))
    buffer.add_batch({"obs": np.zeros((2, 4)), "next": {"obs": np.zeros((2, 4))}, "reward": [0.5, 1.0]})
    batch = assert_type(buffer.sample_batch(256), TensorDict)
    model(batch["obs"].float()).mean().backward()
    for batch in assert_type(buffer.create_epoch_iterator(64, n_epochs=2, shuffle=True, seed=1, drop_last=True), Epochs):
        model(batch["obs"])
    steps = assert_type(buffer.get_steps_and_iterator(n_epochs=2, max_iter=0, batch_size=64), int)
    for _ in range(steps):
        assert_type(buffer.get_next_batch(64), TensorDict)


def look(buffer: BaseReplayBuffer, index: torch.Tensor) -> None:
    """Reads by slot, with what indexes a TensorDict."""
    for where in ([0, -1], (0, 1), range(3), slice(2, None), 5, np.arange(3), np.int64(3), index, [True, False], [[0, 1], [2, 3]]):
        assert_type(buffer.sample_by_index(where), TensorDict)
    assert_type(buffer.sample_by_index_fields([0], ["obs", ("next", "obs")]), TensorDict)
    assert_type(buffer.sample_by_index_fields([0], "obs"), TensorDict)
    assert_type(buffer.sample_all(), TensorDict)
    assert_type(buffer.sample_batch(np.int64(3), seed=7, wait=True), TensorDict)


def see(buffer: RemoteReplayBuffer, index: torch.Tensor) -> None:
    """Views of steps."""
    transitions, pixels = Transitions(3, 0.99, {"obs": 4}), Transitions(frame_stack={("obs", "pixels"): 4}, padding="zeros", names="plain")
    assert_type(buffer.sample_batch(256, view=transitions), TensorDict)
    assert_type(buffer.sample_by_index(index, pixels), TensorDict)
    assert_type(buffer.epochs(32, view=transitions), Epochs)
    with buffer.stream(32, view=Sequences(80, burn_in=40, padding="drop", next_obs=True)) as batches:
        for batch in batches:
            assert_type(importance_weights(batch, 0.4), torch.Tensor)
            trained = batch["mask"] & ~batch["burn_in"]
            batches.update_priorities(batch, assert_type(sequence_priorities(batch["td_error"], trained), torch.Tensor))
    buffer.sample_batch(32, view=Transitions)  # type: ignore[arg-type]


def keep(buffer: BaseReplayBuffer, path: Path) -> None:
    """State, sizes, and what is kept on the disk."""
    state = assert_type(buffer.state(), State)
    assert_type((state.size, state.buffer_size, state.pointer, state.write_count), tuple[int, int, int, int])
    assert_type((len(buffer), buffer.size, buffer.buffer_size), tuple[int, int, int])
    assert_type(buffer.device, torch.device)
    buffer.save(path)
    buffer.load(str(path))
    made = assert_type(buffer.checkpoint("one", progress=lambda done, rows: print(f"{done} of {rows}")), Checkpoint)
    assert_type((made.rows, made.bytes), tuple[int, int])
    buffer.reset()
    buffer.reset(1000)


def in_process() -> None:
    """A buffer in this process."""
    with ReplayBuffer("cpu", torch.device("cpu"), 100_000, directory=Path("replay"), durability="power", seed=3) as buffer:
        train(assert_type(buffer, ReplayBuffer), torch.nn.Linear(4, 1))


def actor(address: str) -> None:
    """Rows from an environment, one by one."""
    with RemoteReplayBuffer(address, table="steps", buffer_size=100_000, timeout=30, transport="grpc", cast=True) as buffer:
        with assert_type(buffer.writer(flush_rows=64, flush_seconds=0.1), Writer) as writer:
            for step in range(100):
                writer.append({"obs": np.zeros(4, np.float32), "step": step})
            writer.extend(TensorDict({"obs": torch.zeros(2, 4), "step": torch.arange(2)}, [2]))
            writer.flush(timeout=5)
    assert_type(RemoteReplayBuffer.tables(address), list[str])


def learner(address: str) -> None:
    """Batches that are on their way before they are asked for."""
    with RemoteReplayBuffer(address, device=torch.device("cuda", 0), table="steps", timeout=None) as buffer:
        with assert_type(buffer.stream(256, prefetch=4, fields=["obs", "next.obs"], seed=1), BatchStream) as batches:
            for batch in batches:
                assert_type(batch, TensorDict)
    loader = assert_type(ReplayDataset(address, 256, table="steps").loader(num_workers=2), DataLoader[TensorDict])
    for batch in loader:
        assert_type(batch, TensorDict)


async def serve_requests(address: str) -> None:
    """The same in asyncio."""
    async with AsyncReplayBuffer(address, table="steps", buffer_size=1000, timeout=5) as buffer:
        assert_type(buffer, AsyncReplayBuffer)
        await buffer.add({"obs": np.zeros(4, np.float32)}, priority=1.0)
        assert_type(await buffer.sample_batch(8, wait=True, seed=3), TensorDict)
        assert_type(await buffer.state(), State)
        assert_type((await buffer.size(), await buffer.durability()), tuple[int, str])
        async with assert_type(buffer.writer(flush_rows=8), AsyncWriter) as writer:
            await writer.append({"obs": np.zeros(4, np.float32)})
            await writer.flush(timeout=5)
        async with assert_type(buffer.stream(32, prefetch=4), AsyncBatchStream) as batches:
            async for batch in batches:
                await batches.update_priorities(assert_type(batch, TensorDict), 1.0)
        epochs = assert_type(await buffer.epochs(32, shuffle=True), AsyncEpochs)
        await epochs.load_state_dict(await epochs.state_dict())
        await buffer.sample_batch("4")  # type: ignore[arg-type]
        await buffer.add({"obs": 1.0}, nothing=3)  # type: ignore[call-arg]
        buffer.stream(32, prefetch="4")  # type: ignore[arg-type]
    assert_type(await AsyncReplayBuffer.tables(address), list[str])
    assert_type(await AsyncReplayBuffer.open(address, device="cpu"), AsyncReplayBuffer)
    AsyncReplayBuffer(address, nothing=3)  # type: ignore[call-arg]


def handle_errors(buffer: RemoteReplayBuffer, rows: TensorDict) -> TensorDict | None:
    """What can go wrong, by name."""
    try:
        buffer.add_batch(rows)
        return buffer.sample_batch(4)
    except (SchemaError, EmptyTableError) as error:
        print(error)
    except (DeadlineError, ServerUnavailableError) as error:
        return assert_type(error.rows, TensorDict | None)
    except ReplayError as error:
        raise SystemExit(str(error)) from error
    return None


def serve() -> None:
    """A server in this process, and one in another."""
    config = ServerConfig(address="127.0.0.1:0", data_dir=Path("replay"), buffer_size=1000, max_streams=4)
    with ReplayServer(config) as server:
        assert_type(server.address, str)
        server.wait()
    with spawn_server(config, start_timeout=10) as process:
        assert_type(process, ServerProcess)
        assert_type((process.address, process.pid), tuple[str, int])
    with spawn_server() as process:
        actor(process.address)


def misuse(buffer: RemoteReplayBuffer, base: BaseReplayBuffer) -> None:
    """What mypy finds before the program runs."""
    buffer.sample_batch("4")  # type: ignore[arg-type]
    buffer.sample_batch(4, 7)  # type: ignore[call-arg]
    buffer.sample_by_index_fields([0], 3)  # type: ignore[arg-type]
    base.stream(4)  # type: ignore[attr-defined]
    RemoteReplayBuffer("localhost:1", transport="pigeon")  # type: ignore[arg-type]
