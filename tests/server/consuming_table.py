"""A ring, a sampler, the leases of its rows and a rate limiter, as a consuming table has them: what the tests of leases work on."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np

from tdreplay.rate_limiters import Unlimited
from tdreplay.table_config import TableConfig
from tdreplay_server.durability.row_listeners import Told
from tdreplay_server.durability.slot_state import Kept, SlotState
from tdreplay_server.storage.ring import Ring
from tdreplay_server.tables.consumption import Consumption
from tdreplay_server.tables.limiters import AT_ONCE, made_limiter
from tdreplay_server.tables.samplers import made_sampler


class Batch:
    """Rows that were drawn for a learner."""

    def __init__(self, reserved, ids, moment):
        self.reserved, self.ids, self.moment = reserved, ids, moment


class ConsumingTable:
    """`lock` stands for the table's lock."""

    def __init__(self, sampler, max_times_sampled=1, buffer_size=10, limiter=None):
        self.config = TableConfig(buffer_size, sampler=sampler, rate_limiter=limiter or Unlimited(), max_times_sampled=max_times_sampled)
        self.ring, self.lock, self.state = Ring(buffer_size), threading.RLock(), None
        self.start()

    def start(self):
        """As a server that starts again: the leases are forgotten."""
        self.config = self.config.resized(self.ring.buffer_size)
        self.sampler = made_sampler(self.config.sampler)
        self.consumption = Consumption(self.sampler, self.config.max_times_sampled)
        self.limiter = made_limiter(self.config, lambda: self.consumption.supply(self.ring))
        self.told = Told(self)
        if self.state is not None:
            self.opened(self.state, self.ring)
            self.told.tell(self.ring)

    # -- as a RowListener -----------------------------------------------------------------------------------------------------------------------

    @property
    def parts(self):
        return self.sampler, self.consumption

    def opened(self, state, ring):
        self.sampler.opened(state, ring.buffer_size)
        for part in (self.consumption, self.limiter):
            part.opened(state, ring)

    def written(self, ids, priorities=None):
        for part in self.parts:
            part.written(ids, priorities)

    def inserted(self, ids):
        for part in self.parts:
            part.inserted(ids)

    def evicted(self, ids):
        for part in self.parts:
            part.evicted(ids)

    # -- as a table -----------------------------------------------------------------------------------------------------------------------------

    def insert(self, rows, wait=AT_ONCE):
        with self.limiter.inserting(rows, wait), self.lock:
            first = self.ring.write_count
            if self.state is None:
                kept = Kept((*self.sampler.columns, *self.consumption.columns), (*self.sampler.values, *self.limiter.values))
                self.state = SlotState(kept, self.ring.buffer_size)
                self.opened(self.state, self.ring)
            self.written(range(first, first + rows))
            self.move(self.ring.commit(rows))
        return range(first, first + rows)

    def move(self, ring):
        with self.lock:
            self.ring = ring
            self.told.tell(ring)
            self.limiter.changed()

    def rewind(self, size, write_count):
        self.move(self.ring.rewind(size, write_count))

    def reset(self, buffer_size=None):
        with self.lock:
            self.move(self.ring.restart(buffer_size or self.ring.buffer_size))
            self.state = None
            for part in (self.consumption, self.limiter):
                part.emptied(self.ring)

    def draw(self, rows, batches=1, wait=AT_ONCE, seed=0):
        with self.limiter.sampling(rows, batches, wait) as reserved, self.lock:
            generators = [np.random.default_rng((seed, number)) for number in range(reserved.batches)]
            ids = self.consumption.draw(rows, generators, self.ring).ids
            return [Batch(reserved, some, self.consumption.moment) for some in ids.reshape(-1, rows)]

    def take(self, batch):
        with self.lock:
            self.consumption.taken(batch.ids, batch.moment)
            self.limiter.taken(batch.reserved)
            front = self.consumption.front(self.ring)
            if front > self.ring.oldest:
                self.move(replace(self.ring, oldest=front))
            self.limiter.changed()

    def give_back(self, batch):
        with self.lock:
            self.consumption.give_back(batch.ids, batch.moment)
            self.limiter.given_back(batch.reserved)
            self.limiter.changed()
