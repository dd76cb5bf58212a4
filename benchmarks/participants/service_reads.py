"""How fast a client reads."""

from __future__ import annotations

import time

import torch

from benchmarks.measure import latency, throughput
from benchmarks.participants.server_memory import most_private_bytes, private_bytes
from benchmarks.participants.service import Service
from benchmarks.participants.tensors import check_owned, check_tensordicts
from benchmarks.work import BATCH, WrongRowsError

__all__ = ["PREFETCH", "measure_single_batches", "measure_streams"]

PREFETCH = {"small": 16, "image": 4}
"""Batches of a stream that may be on their way."""
EPOCHS = 2


def measure_streams(service: Service) -> None:
    """Random batches and epochs, and the server's memory meanwhile."""
    _random(service)
    _epochs(service)


def _random(service: Service) -> None:
    service.report.memory("server memory, idle", private_bytes(service.pid))
    with service.buffer.stream(BATCH, prefetch=PREFETCH[service.work.name]) as batches:
        if batches.shared != service.shared:
            raise RuntimeError(f"the stream has shared memory: {batches.shared}, and it should be {service.shared}")
        sample = batches.__next__
        service.report.speed("stream", BATCH, throughput(sample, service.seconds))
        service.report.memory("server memory, streaming", most_private_bytes(service.pid, sample))
        check_tensordicts(service.work, service.live, sample)
        check_owned(service.work, service.live, sample)


def measure_single_batches(service: Service) -> None:
    """Calls that are waited for."""
    service.report.speed("sample_batch", BATCH, latency(lambda: service.buffer.sample_batch(BATCH), service.seconds))
    check_tensordicts(service.work, service.live, lambda: service.buffer.sample_batch(BATCH))
    check_owned(service.work, service.live, lambda: service.buffer.sample_batch(BATCH), following=2)


def _epochs(service: Service) -> None:
    start = time.perf_counter()
    rewards = [batch["reward"].clone() for batch in service.buffer.create_epoch_iterator(BATCH, EPOCHS)]
    service.report.speed("epoch", service.work.capacity, (time.perf_counter() - start) / EPOCHS)
    if not torch.equal(torch.cat(rewards).flatten(), torch.arange(service.work.capacity).repeat(EPOCHS).float()):
        raise WrongRowsError("an epoch did not bring every row once, in order")
