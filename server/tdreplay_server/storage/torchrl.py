"""The classes of TorchRL that the server builds on. They are imported here alone: TorchRL would leave its settings in the process."""

from __future__ import annotations

from tensordict import lazy_legacy, set_lazy_legacy

from tdreplay_server.system.imports import process_unchanged

__all__ = ["LazyMemmapStorage", "LazyTensorStorage", "Sampler", "TensorDictReplayBuffer", "Writer"]

_legacy = lazy_legacy()
with process_unchanged():
    from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import Sampler
    from torchrl.data.replay_buffers.writers import Writer

    set_lazy_legacy(_legacy).set()
