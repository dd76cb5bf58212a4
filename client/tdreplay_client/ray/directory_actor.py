"""The actor that knows the shards of a cluster: it starts them, says where they are, and lets them go."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import ray

from tdreplay.errors import FailedPreconditionError, ReplayError
from tdreplay_client.ray.calls import answer_of, answers_of, found_shards, is_restarted
from tdreplay_client.ray.leaving import Leaving
from tdreplay_client.ray.settings import NAMESPACE, ClusterSettings, shard_name
from tdreplay_client.ray.shard_starts import ShardStarts
from tdreplay_client.ray.status import ClusterStatus, Resized, ShardStatus
from tdreplay_client.ray.watched_shards import ANSWER_SECONDS, PAUSE_SECONDS, WatchedShards

__all__ = ["DirectoryActor"]

log = logging.getLogger("tdreplay")
STOP_SECONDS = 75.0
CHANGE_SECONDS = 1.0
"""How long an order waits for another one, most of which take less, or far longer."""
AGAIN_SECONDS = 3600.0
"""How long shards may take to leave whose leaving was interrupted."""


class DirectoryActor:
    """Knows the shards of a cluster. It keeps nothing: where Ray starts it again, it finds them by their names, and asks them.

    Args:
        settings: Of the cluster.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        self._settings = settings
        self._shards = WatchedShards()
        self._starts, self._leaving = ShardStarts(settings, self._shards), Leaving(self._shards)
        self._changing = threading.Lock()
        self._found = threading.Event()
        if is_restarted():
            threading.Thread(target=self._find, name="tdreplay-find", daemon=True).start()
        else:
            self._found.set()

    # -- what clients ask ---------------------------------------------------------------------------------------------------------------------

    def places(self) -> Sequence[ShardStatus]:
        """The shards that clients use; empty where their addresses are not known yet. Ray's log would show an error that nobody waits for."""
        return self._shards.places() if self._found.is_set() else ()

    def status(self) -> ClusterStatus:
        """The cluster now."""
        return ClusterStatus(self._settings.name, self._shards.statuses())

    def settings(self) -> ClusterSettings:
        """What it was started with."""
        return self._settings

    # -- what drivers order -------------------------------------------------------------------------------------------------------------------

    def start(self, shards: int, seconds: float) -> None:
        """As `ShardStarts.first`. Shards that were leaving when their cluster was stopped go on with it; those that were drained take rows again."""
        until = time.monotonic() + seconds
        with self._change():
            self._starts.first(shards, until)
            answers_of([actor.serve.remote() for actor in self._shards.actors().values()], ANSWER_SECONDS, "a shard")
            self._shards.ask_all()
            begun = self._leaving.begun(until)
        if begun:
            threading.Thread(target=self._go_on_leaving, name="tdreplay-leave", daemon=True).start()

    def resize(self, shards: int, mode: str, drain_seconds: float, seconds: float) -> Resized:
        """As in `ReplayCluster`. It goes on where the driver that ordered it is gone. What an earlier one began is ended first."""
        until = time.monotonic() + seconds
        with self._change():
            begun = list(self._leaving.begun(until))
            staying = [number for number in self._shards.staying() if number not in begun]
            leaving = sorted({*begun, *staying[shards:]})
            found = Resized()
            if leaving:
                self._leaving.begin(leaving, mode, drain_seconds)
                found = self._leaving.end(leaving, mode, drain_seconds, until)
            return found.with_added(self._starts.more(max(0, shards - len(staying)), until))

    def drain(self) -> None:
        """As in `ReplayCluster`."""
        with self._change():
            actors = self._shards.actors()
            answers_of([actor.drain.remote("", 0.0) for actor in actors.values()], ANSWER_SECONDS, "a shard")
            self._shards.ask_all()

    def stop(self) -> None:
        """Ends all servers and their actors. What they stored stays on the disks."""
        with self._change():
            self._shards.end()
            actors = self._shards.actors()
            stopping = {number: actor.stop.remote() for number, actor in actors.items()}
            for number in actors:
                with suppress(ReplayError):  # An actor that does not answer is ended all the same, and its server with it.
                    answer_of(stopping[number], STOP_SECONDS, f"shard {number}")
                self._leaving.remove(number)

    @contextmanager
    def _change(self) -> Iterator[None]:
        """For ``with``: one change at a time.

        Raises:
            FailedPreconditionError: another one is at work.
        """
        if not self._found.wait(ANSWER_SECONDS) or not self._changing.acquire(timeout=CHANGE_SECONDS):
            raise FailedPreconditionError(f"cluster {self._settings.name!r} is being changed already: see its status, and try again")
        try:
            yield
        finally:
            self._changing.release()

    # -- after it was restarted ---------------------------------------------------------------------------------------------------------------

    def _find(self) -> None:
        """Finds the shards by the names of their actors. Those that were leaving go on with it."""
        for number in found_shards(self._settings.name):
            self._find_one(number)
        self._found.set()
        self._go_on_leaving()

    def _find_one(self, number: int) -> None:
        while True:
            try:
                actor = ray.get_actor(shard_name(self._settings.name, number), namespace=NAMESPACE)
                record, group = answer_of(actor.kept.remote(), ANSWER_SECONDS, f"shard {number}")
                status = answer_of(actor.status.remote(), ANSWER_SECONDS, f"shard {number}")
            except ValueError:
                log.info("shard %d is gone: it left, or was being stopped", number)
                return
            except ReplayError as error:
                log.warning("shard %d cannot be asked yet: %s", number, error)
                time.sleep(PAUSE_SECONDS)
            else:
                self._starts.count_from(max(record.next_number, number + 1))
                self._shards.add(number, actor, group, status)
                return

    def _go_on_leaving(self) -> None:
        """Lets those go whose leaving was interrupted. Where that fails, the next `resize` goes on with it."""
        until = time.monotonic() + AGAIN_SECONDS
        with suppress(FailedPreconditionError), self._change():  # Else a driver was first, and ends what was begun.
            begun = self._leaving.begun(until)
            for mode in sorted({record.mode for record in begun.values()}):
                numbers = [number for number, record in begun.items() if record.mode == mode]
                log.info("the shards %s go on leaving", numbers)
                drain_seconds = max(0.0, *(begun[number].leaves_at - time.time() for number in numbers))
                self._leaving.end(numbers, mode, drain_seconds, until)
