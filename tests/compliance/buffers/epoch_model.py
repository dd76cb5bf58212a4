"""A long random run of epochs, with inserts that wrap around in between, against a plain Python model: each row comes where it must, or is gone."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from conftest import numbers, rows
from tdreplay.api import BaseReplayBuffer
from tdreplay.errors import OverwrittenError

SETTINGS = settings(max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))


class EpochModel(RuleBasedStateMachine):
    """Row id and number of a row are equal here, but over shards.

    `oldest` has the oldest live row at each of the last takes: a row that comes was live then.
    """

    ahead = 0
    """So many batches may have been read before they are taken."""
    shards = 0

    def make(self, buffer_size: int) -> BaseReplayBuffer:
        raise NotImplementedError

    @initialize(buffer_size=st.integers(1, 30))
    def start(self, buffer_size: int) -> None:
        self.buffer, self.buffer_size, self.count = self.make(buffer_size), buffer_size, 0
        self.begun, self.batches = False, None

    @rule(n=st.integers(1, 40))
    def insert(self, n: int) -> None:
        self.buffer.add_batch(rows(n, self.count))
        self.count += n

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        world_size = data.draw(st.integers(1, 4))
        self.arguments: dict[str, Any] = {
            "batch_size": data.draw(st.integers(1, 12)),
            "n_epochs": data.draw(st.integers(1, 3)),
            "shuffle": data.draw(st.booleans()),
            "seed": data.draw(st.integers(0, 1 << 62)),
            "drop_last": data.draw(st.booleans()),
            "world_size": world_size,
            "rank": data.draw(st.integers(0, world_size - 1)),
            "on_overwrite": data.draw(st.sampled_from(["skip", "raise", "replace"])),
        }
        whole = {name: self.arguments[name] for name in ("n_epochs", "shuffle", "seed")}
        orders = [numbers(batch) for batch in self.buffer.epochs(self.buffer_size, **whole)]
        self.batches, self.begun = self.buffer.epochs(**self.arguments), True
        self.oldest = [self._oldest()]
        self.left = self._expected(orders)
        self.all = len(self.left)
        self.gone = 0

    def _oldest(self) -> int:
        return max(0, self.count - self.buffer_size)

    def _expected(self, orders: list[list[int]]) -> list[list[int]]:
        """The batches of the learner, where no row is overwritten."""
        size, world_size, found = self.arguments["batch_size"], self.arguments["world_size"], []
        for order in orders:
            share = order[self.arguments["rank"] :: world_size]
            if self.arguments["drop_last"]:
                share = share[: len(order) // (world_size * size) * size]
            found += [share[start : start + size] for start in range(0, len(share), size)]
        return found

    # Whether an error ended the epochs depends on what was read ahead. Which rules come must not, so one that comes then does nothing.

    @precondition(lambda self: self.begun)
    @rule()
    def resume(self) -> None:
        """In another iterator, as after a crash: nothing was read ahead."""
        if self.batches is None:
            return
        token = json.loads(json.dumps(self.batches.state_dict()))
        self.batches.close()
        self.batches = self.buffer.epochs(**self.arguments)
        self.batches.load_state_dict(token)
        assert self.batches.state_dict() == token
        self.oldest = [self._oldest()]

    @precondition(lambda self: self.begun)
    @rule()
    def take(self) -> None:
        if self.batches is None:
            return
        known, now = self.oldest[max(0, len(self.oldest) - 1 - self.ahead)] if self.ahead else self._oldest(), self._oldest()
        before = self._done()
        try:
            batch = next(self.batches, None)
        except OverwrittenError:
            assert self.arguments["on_overwrite"] == "raise"
            assert any(min(expected) < now for expected in self.left[: self.ahead + 1])
            self.batches = None
            return
        self.oldest.append(now)
        done = self._done() - before
        covered, self.left = self.left[:done], self.left[done:]
        if batch is not None:
            self._check(numbers(batch), batch["index"].tolist(), covered.pop(), known, now)
            assert self.shards > 1 or numbers(batch) == batch["row_id"].tolist()
        for expected in covered:  # Batches of which nothing was left.
            assert self.arguments["on_overwrite"] == "skip"
            assert max(expected) < now
            self.gone += len(expected)
        assert batch is not None or not self.left
        assert self.batches.overwritten == self.gone

    def _done(self) -> int:
        """The batches that are behind the iterator."""
        token, epochs = self.batches.state_dict(), self.arguments["n_epochs"]
        return token["epoch"] * (self.all // epochs) + -(-token["position"] // self.arguments["batch_size"])

    def _check(self, came: list[int], slots: list[int], expected: list[int], known: int, now: int) -> None:
        """A batch has the expected rows, but for those that are gone: rows below `known` surely are, and rows from `now` on surely are not."""
        assert slots == [row_id % self.buffer_size for row_id in came]
        if self.arguments["on_overwrite"] == "replace":
            assert [row_id % self.buffer_size for row_id in came] == [wanted % self.buffer_size for wanted in expected]
            assert all(row_id == wanted or row_id > wanted < now for row_id, wanted in zip(came, expected, strict=True))
        else:
            assert came == [wanted for wanted in expected if wanted in came]
            assert all(wanted < now for wanted in expected if wanted not in came)
        assert all(row_id >= known for row_id in came)
        self.gone += sum(wanted not in came for wanted in expected)

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            self.buffer.close()
