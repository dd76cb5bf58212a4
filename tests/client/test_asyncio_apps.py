"""The buffer for asyncio where it is used: in a web application that uvicorn serves, and in the cells of a notebook."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import json
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError

import pytest
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tdreplay_client import AsyncReplayBuffer

SECONDS = 60.0


def application(address: str, table: str) -> Starlette:
    """What is described in docs/asyncio.md, and a page that waits for rows with a timeout."""
    buffer = AsyncReplayBuffer(address, table=table, buffer_size=1000, timeout=SECONDS)

    async def store(request: Request) -> JSONResponse:
        await buffer.add(await request.json())
        return JSONResponse({"rows": await buffer.size()})

    async def draw(request: Request) -> JSONResponse:
        try:
            batch = await asyncio.wait_for(buffer.sample_batch(int(request.query_params["rows"]), wait=True), 0.2)
        except asyncio.TimeoutError:
            return JSONResponse({"error": "there are no rows yet"}, 503)
        return JSONResponse({"n": batch["n"].tolist()})

    @contextlib.asynccontextmanager
    async def opened(app: Starlette) -> AsyncIterator[None]:
        async with buffer:
            yield

    return Starlette(routes=[Route("/rows", store, methods=["POST"]), Route("/batch", draw)], lifespan=opened)


@contextlib.contextmanager
def served(app: Starlette) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + SECONDS
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        assert not thread.is_alive()


def asked(url: str, row: object = None) -> dict[str, object]:
    data = None if row is None else json.dumps(row).encode()
    with urllib.request.urlopen(url, data, timeout=SECONDS) as answer:  # noqa: S310 - it is the test's own server.
        found: dict[str, object] = json.load(answer)
        return found


def test_a_web_application_stores_rows_and_draws_batches(address, table):
    with served(application(address, table)) as url:
        began = time.monotonic()
        with pytest.raises(HTTPError, match="503"):
            asked(f"{url}/batch?rows=4")
        assert time.monotonic() - began < SECONDS / 4
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: asked(f"{url}/rows", {"n": n}), range(40)))
            batches = list(pool.map(lambda _: asked(f"{url}/batch?rows=4"), range(20)))
        assert asked(f"{url}/rows", {"n": 40}) == {"rows": 41}
        assert all(len(batch["n"]) == 4 and set(batch["n"]) <= set(range(40)) for batch in batches)


CELLS = (
    "buffer = await AsyncReplayBuffer.open(address, table=table, buffer_size=100)",
    "await buffer.add_batch({'n': torch.arange(10)})",
    "batches = await buffer.stream(4)\nfirst = await anext(batches)",
    "rows = [row async for batch in buffer.epochs(4) for row in batch['n'].tolist()]",
    "size = await buffer.size()",
    "await buffer.close()",
)


def test_the_cells_of_a_notebook_await_it_in_the_loop_that_runs(address, table):
    """As IPython runs a cell: compiled with await at the top, and awaited in the kernel's loop."""
    names = {"AsyncReplayBuffer": AsyncReplayBuffer, "torch": torch, "address": address, "table": table}

    async def ran(cell: str) -> None:
        result = eval(compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)  # noqa: S307 - it is as IPython does.
        if inspect.isawaitable(result):
            await result

    loop = asyncio.new_event_loop()
    kernel = threading.Thread(target=loop.run_forever)
    kernel.start()
    try:
        for cell in CELLS:
            asyncio.run_coroutine_threadsafe(ran(cell), loop).result(SECONDS)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        kernel.join(SECONDS)
        loop.close()
    assert (names["rows"], names["size"], len(names["first"])) == (list(range(10)), 10, 4)
