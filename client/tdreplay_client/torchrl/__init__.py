"""TorchRL's replay buffer over a table of a server.

This room alone knows TorchRL, and nothing else of the client imports it: it is for those who have TorchRL.
"""

try:
    import torchrl.data  # noqa: F401 - to say what is missing.
except ModuleNotFoundError as missing:
    if missing.name != "torchrl":
        raise
    text = "tdreplay_client.torchrl needs torchrl, which is not installed: pip install 'tdreplay[torchrl]'"
    raise ModuleNotFoundError(text, name=missing.name) from missing

from tdreplay_client.torchrl.buffer import RemoteTensorDictReplayBuffer

__all__ = ["RemoteTensorDictReplayBuffer"]
