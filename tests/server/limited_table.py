"""A ring and its rate limiter, as a table has them, without rows: what the tests of rate limiters work on."""

from __future__ import annotations

import threading
from contextlib import contextmanager

from tdreplay.rate_limiters import Queue
from tdreplay.table_config import TableConfig
from tdreplay_server.durability.slot_state import Kept, SlotState
from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.limiters import AT_ONCE, Supply, made_limiter


class LimitedTable:
    """Counts rows. `lock` is held while a count changes: whoever holds it sees inserted and taken rows of one moment."""

    def __init__(self, limiter=None, buffer_size=1000):
        self.config = TableConfig(buffer_size, rate_limiter=limiter or Queue(10))
        self.ring = Ring(buffer_size)
        self.lock = threading.RLock()
        self.state = None
        self.reserved = []
        self.start()

    def start(self):
        """As a server that starts again: what was reserved is forgotten."""
        self.limiter, self.reserved = made_limiter(self.config, lambda: Supply.of(self.ring)), []
        if self.state is not None:
            self.limiter.opened(self.state, self.ring)

    def insert(self, rows, wait=AT_ONCE):
        with self.limiter.inserting(rows, wait):
            self.commit(rows)

    def commit(self, rows):
        with self.lock:
            if self.state is None:
                self.state = SlotState(Kept(values=tuple(self.limiter.values)), self.ring.buffer_size)
                self.limiter.opened(self.state, self.ring)
            self.ring = self.ring.commit(rows)
            self.limiter.changed()

    def sample(self, rows, batches=1, wait=AT_ONCE):
        with self.limiter.sampling(rows, batches, wait) as reserved:
            self.reserved += [reserved] * reserved.batches
        return reserved.batches

    def take(self):
        with self.lock:
            reserved = self.reserved.pop(0)
            self.limiter.taken(reserved)
        return reserved.rows

    def give_back(self):
        self.limiter.given_back(self.reserved.pop())

    def reset(self, buffer_size=None):
        self.ring, self.state = self.ring.restart(buffer_size or self.ring.buffer_size), None
        self.limiter.emptied(self.ring)


@contextmanager
def started(*works):
    """Runs works in threads, and waits for them at the end. The first error that one of them raised is raised then."""
    errors = []

    def run(work):
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised at the end.
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
