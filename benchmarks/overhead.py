"""What metrics, TLS and tokens cost a small stream and single inserts. ``make bench-overhead``.

Each is measured in pairs: a server with it and one without it take turns, a fraction of a second each, so that what else the machine does hits
both. All share the machine's cores: the ratios say more than the figures.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import torch
import trustme
import typer
from rich.console import Console
from rich.table import Table

from tdreplay_client import TLS, RemoteReplayBuffer
from tdreplay_server import ServerConfig, spawn_server
from tdreplay_server.access.roles import Role
from tdreplay_server.access.tokens import Token, Tokens, digest_of, new_secret
from tdreplay_server.access.tokens_file import change_tokens

BATCH, CAPACITY, ROW_BYTES = 256, 100_000, 165
TURN_SECONDS = 0.4
METRICS = "127.0.0.1:19464"
TARGET = 0.97

Round = Callable[[], float]
"""Works for a turn, and says how much it did in a second."""


def row(rows: int) -> dict[str, torch.Tensor]:
    """So many rows of 165 bytes each."""
    return {"obs": torch.zeros(rows, 40), "action": torch.zeros(rows, dtype=torch.uint8), "reward": torch.zeros(rows)}


def certificate(directory: Path) -> dict[str, Any]:
    """The settings of a server with TLS, whose certificate is signed by ca.pem."""
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    made.private_key_pem.write_to_path(str(directory / "key.pem"))
    made.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    return {"cert_file": directory / "cert.pem", "key_file": directory / "key.pem"}


def token(directory: Path) -> str:
    """A token that may do everything, in tokens.json."""
    secret = new_secret()
    entry = Token(name="bench", sha256=digest_of(secret).hex(), roles=(Role.ADMIN,), created=datetime.now(timezone.utc))
    change_tokens(directory / "tokens.json", lambda tokens: Tokens.with_token(tokens, entry))
    return secret


@contextmanager
def served(directory: Path, what: str) -> Iterator[RemoteReplayBuffer]:
    """A full table of a server with `what`: nothing, metrics, TLS, or tokens."""
    settings: dict[str, Any] = {"metrics": {"metrics_address": METRICS}, "TLS": certificate(directory)}.get(what, {})
    secret = token(directory) if what == "tokens" else None
    if secret is not None:
        settings = {"tokens_file": directory / "tokens.json"}
    tls = TLS(ca_file=directory / "ca.pem") if what == "TLS" else None
    with (
        spawn_server(ServerConfig(address="127.0.0.1:0", **settings)) as server,
        RemoteReplayBuffer(server.address, buffer_size=CAPACITY, transport="grpc", tls=tls, token=secret) as buffer,
    ):
        buffer.add_batch(row(CAPACITY))
        yield buffer


@contextmanager
def streaming(buffer: RemoteReplayBuffer) -> Iterator[Round]:
    """Batches of a stream that stays open."""
    with buffer.stream(BATCH, prefetch=16) as batches:
        yield lambda: _a_second(lambda: next(batches))


@contextmanager
def adding(buffer: RemoteReplayBuffer) -> Iterator[Round]:
    """Single inserts."""
    one = {name: column[0] for name, column in row(1).items()}
    yield lambda: _a_second(lambda: buffer.add(one))


WORKS = {"batches a second": streaming, "adds a second": adding}


def _a_second(step: Callable[[], object]) -> float:
    for _ in range(20):
        step()
    began, steps = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < TURN_SECONDS:
        step()
        steps += 1
    return steps / seconds


def compared(rounds: Sequence[Round], turns: int, between: Callable[[], object]) -> tuple[float, float, float]:
    """The medians without and with, and the median of the pairs' ratios. Every other pair begins with the other one."""
    pairs = []
    for turn in range(turns):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        found = {number: rounds[number]() for number in order}
        pairs.append((found[0], found[1]))
        between()
    without, with_ = (statistics.median(side) for side in zip(*pairs, strict=True))
    return without, with_, statistics.median(on / off for off, on in pairs)


def scrape() -> None:
    """Reads the metrics, as Prometheus does now and then."""
    with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=10) as answer:
        answer.read()


def main(
    turns: Annotated[int, typer.Option(help="Pairs of turns.")] = 25,
    only: Annotated[str, typer.Option(help="metrics, TLS or tokens: this one alone.")] = "",
) -> None:
    """Measures what metrics, TLS and tokens cost."""
    table = Table(title=f"batches of {BATCH} rows of {ROW_BYTES} bytes over gRPC; the median of {turns} pairs of turns")
    for column in ("with", "what", "without", "with it", "ratio", f"target {TARGET}"):
        table.add_column(column)
    for what in (only,) if only else ("metrics", "TLS", "tokens"):
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            buffers = [stack.enter_context(served(Path(scratch), each)) for each in ("", what)]
            for name, work in WORKS.items():
                with ExitStack() as works:
                    rounds = [works.enter_context(work(buffer)) for buffer in buffers]
                    off, on, ratio = compared(rounds, turns, scrape if what == "metrics" else lambda: None)
                table.add_row(what, name, f"{off:,.0f}", f"{on:,.0f}", f"{ratio:.3f}", "met" if ratio >= TARGET else "missed")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
