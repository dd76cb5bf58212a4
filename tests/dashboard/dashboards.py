"""A dashboard in this process, tables whose contents are known, and a client that reads JSON and PNG."""

from __future__ import annotations

import http.client
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import torch
from tensordict import TensorDict

from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.dashboard.serving import Dashboard
from tdreplay_client.transport.access import OPEN, Access
from tdreplay_client.transport.connection import Connection

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
"""The name of a field."""

SIDE = 24
"""Of the images, in pixels."""


@dataclass(frozen=True)
class Page:
    """A dashboard that answers.

    Attributes:
        url: where.
    """

    url: str
    headers: dict[str, str] = field(default_factory=dict)

    def fetch(self, path: str, method: str = "GET", headers: dict[str, str] | None = None, **query: Any) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)
        try:
            connection.request(method, f"/{path}?{urlencode(query)}" if query else f"/{path}", headers=headers or {})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def read(self, path: str, **query: Any) -> Any:
        """The JSON of an answer that is no refusal."""
        status, _, body = self.fetch(f"api/{path}", **query)
        assert status == 200, body
        return json.loads(body)

    def refusal(self, path: str, **query: Any) -> tuple[int, str]:
        """Status and words of a refusal."""
        status, _, body = self.fetch(f"api/{path}", **query)
        return status, json.loads(body)["error"]

    def picture(self, table: str, **query: Any) -> np.ndarray:
        """The pixels of an image: uint8 of shape [H, W, C]."""
        status, headers, body = self.fetch(f"api/tables/{table}/image", **query)
        assert (status, headers["content-type"]) == (200, "image/png"), body
        return unpacked(body)


@contextmanager
def dashboard(address: str, access: Access = OPEN, timeout: float = 10) -> Iterator[Page]:
    """A dashboard of the server at that address."""
    connection = Connection(address, timeout, access)
    try:
        with Dashboard(connection, "127.0.0.1:0") as page:
            thread = threading.Thread(target=page.run)
            thread.start()
            yield Page(page.url)
            page.stop()
            thread.join(20)
            assert not thread.is_alive()
    finally:
        connection.close()


def unpacked(png: bytes) -> np.ndarray:
    """The pixels of a PNG file whose lines have no filter."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(png):
        (length,), name = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        data, (check,) = png[at + 8 : at + 8 + length], struct.unpack(">I", png[at + 8 + length : at + 12 + length])
        assert zlib.crc32(name + data) == check
        chunks[name] = data
        at += 12 + length
    width, height, depth, kind, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, rest) == (8, [0, 0, 0])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, {0: 1, 4: 2, 2: 3, 6: 4}[kind])


def until(condition: Callable[[], Any], seconds: float = 15) -> Any:
    """What a condition gives, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return found


# -- tables -----------------------------------------------------------------------------------------------------------------------------------


def frame(number: int) -> np.ndarray:
    """The image of a step: it tells which one it is."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[:, :, 0], image[number % SIDE, :, 1], image[..., 2] = number % 256, 255, 255 - number % 256
    return image


LENGTHS = (5, 9, 12)
"""The steps of the episodes that ended; one more is open."""


def fill_episodes(address: str, table: str = "pixels", token: str | None = None) -> RemoteReplayBuffer:
    """A prioritized table with episodes of pixels, of which the last is open. The priority of row n is n / 4."""
    sampler = {"name": "prioritized", "alpha": 0.5}
    buffer = RemoteReplayBuffer(address, table=table, buffer_size=200, sampler=sampler, trajectories=True, timeout=10, token=token)
    number = 0
    with buffer.trajectory_writer(autoreset="same_step") as writer:
        for episode, length in enumerate((*LENGTHS, 7)):
            for step in range(length):
                last = episode < len(LENGTHS) and step == length - 1
                ended = {"terminated": last and episode != 1, "truncated": last and episode == 1}
                given = {
                    "obs": frame(number),
                    "action": number % 3,
                    "reward": np.float32(step + 0.1),
                    **ended,
                    "info": {"q": np.arange(40.0) + number},
                }
                writer.append(given, final=frame(number + 1) if last else None)
                number += 1
    buffer.update_priorities(np.arange(buffer.state().size), np.arange(buffer.state().size) / 4)
    return buffer


def fill_odd(address: str, table: str = "odd") -> RemoteReplayBuffer:
    """A table whose rows have every kind of value. Rows 0 to 7 were overwritten."""
    buffer = RemoteReplayBuffer(address, table=table, buffer_size=30, timeout=10)
    numbers = torch.arange(38)
    images = torch.from_numpy(np.stack([frame(int(number)) for number in numbers]))
    grey = images[:, :, :, 1].float()
    buffer.add_batch(
        TensorDict(
            {
                HOSTILE: numbers + 2**60,
                "reward": torch.where(numbers == 20, torch.nan, numbers / 8).double(),
                "done": numbers % 2 == 0,
                "half": (numbers / 10).half(),
                "vector": (numbers[:, None] + torch.arange(1500)).float(),
                "three": numbers[:, None].int() + torch.arange(3, dtype=torch.int32),
                "wave": torch.complex(numbers.float(), -numbers.float()),
                "large": numbers[:, None].double().expand(38, 600_000),
                "picture": {
                    "hwc": images,
                    "chw": images.permute(0, 3, 1, 2),
                    "rgba": torch.cat([images, images[..., :1]], 3),
                    "unit": grey / 255,
                    "wide": grey * 3 - 100,
                    "stack": images[..., :1].permute(0, 3, 1, 2).expand(38, 5, SIDE, SIDE) + torch.arange(5, dtype=torch.uint8)[:, None, None],
                },
            },
            [38],
        )
    )
    return buffer
