"""The actor that knows the shards of a cluster: it starts them, says where they are, and lets them go."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray

from tdreplay.errors import FailedPreconditionError, InvalidArgumentError, ReplayError, ServerUnavailableError
from tdreplay.limits import MAX_SHARDS
from tdreplay_client.ray.calls import answer_of, answers_of, is_restarted
from tdreplay_client.ray.placing import kept_shards, remove_group, started_shards
from tdreplay_client.ray.settings import NAMESPACE, ClusterSettings, shard_name
from tdreplay_client.ray.status import DRAINING, LEAVING, ClusterStatus, Resized, ShardStatus, Target
from tdreplay_client.ray.watched_shards import WatchedShards

__all__ = ["DirectoryActor"]

log = logging.getLogger("tdreplay")
REFRESH_SECONDS = 3.0
"""Within this time clients know that a shard is not used any more: they ask once a second."""
ANSWER_SECONDS = 15.0
"""How long an actor may take for what it does at once."""
LOOK_SECONDS = 30.0
"""How long a node may take to look at its disk, where Ray first has to start a process."""
STOP_SECONDS = 75.0
PAUSE_SECONDS = 0.5
MOVE_SECONDS = 30.0
"""How long a shard that does not answer is waited for, before it is looked for at another address."""


class DirectoryActor:
    """Knows the shards of a cluster. It keeps nothing: where Ray starts it again, it finds them by their names, and asks them.

    Args:
        settings: Of the cluster.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        self._settings = settings
        self._shards = WatchedShards()
        self._next = 0
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
        """Starts the shards: those that are found on the nodes' disks, and new ones.

        Raises:
            FailedPreconditionError: the disks have more of them; or a server does not start.
            ReplayError: as `started_shards`. Nothing is left of what was started.
        """
        until = time.monotonic() + seconds
        with self._change():
            kept = kept_shards(self._settings, max(seconds, LOOK_SECONDS))
            if len(kept) > shards:
                raise FailedPreconditionError(
                    f"shards ({shards}) must be at least {len(kept)}: {self._settings.data_dir} has so many shards of cluster "
                    f"{self._settings.name!r}. Start them all, and let resize remove some"
                )
            self._next = max([0, *(number + 1 for number in kept), *(each.record.next_number for each in kept.values())])
            new = list(range(self._next, self._next + shards - len(kept)))
            self._next += len(new)
            self._start(sorted([*kept, *new]), kept, until)
            log.info("cluster %s has the shards %s, of which %s have rows already", self._settings.name, sorted([*kept, *new]), sorted(kept))
            self._go_on_leaving()

    def resize(self, shards: int, mode: str, drain_seconds: float, seconds: float) -> Resized:
        """As in `ReplayCluster`. It goes on where the driver that ordered it is gone."""
        until = time.monotonic() + seconds
        with self._change():
            staying = self._shards.staying()
            if shards >= len(staying):
                return Resized(added=tuple(self._grow(shards - len(staying), until)))
            return self._shrink(staying[shards:], mode, drain_seconds, until)

    def drain(self) -> None:
        """As in `ReplayCluster`."""
        with self._change():
            actors = self._shards.actors()
            answers_of([actor.drain.remote("", 0.0) for actor in actors.values()], ANSWER_SECONDS, "a shard")
            self._ask_all()

    def stop(self) -> None:
        """Ends all servers and their actors. What they stored stays on the disks."""
        with self._change():
            self._shards.end()
            actors = self._shards.actors()
            stopping = {number: actor.stop.remote() for number, actor in actors.items()}
            for number, actor in actors.items():
                with suppress(ReplayError):  # An actor that does not answer is ended all the same, and its server with it.
                    answer_of(stopping[number], STOP_SECONDS, f"shard {number}")
                self._end(number, actor)

    # -- how it is done -----------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _change(self) -> Iterator[None]:
        """For ``with``: one change at a time.

        Raises:
            FailedPreconditionError: another one is at work.
        """
        if not self._found.wait(ANSWER_SECONDS) or not self._changing.acquire(blocking=False):
            raise FailedPreconditionError(f"cluster {self._settings.name!r} is being changed already: see its status, and try again")
        try:
            yield
        finally:
            self._changing.release()

    def _start(self, numbers: Sequence[int], kept: Any, until: float) -> None:
        actors = started_shards(self._settings, numbers, kept, self._next, _left(until))
        try:
            waiting = {number: actor.ready.remote(_left(until)) for number, actor in actors.items()}
            keeping = [actor.keep_next_number.remote(self._next) for actor in (self._shards.actors() | actors).values()]
            found = {number: answer_of(reference, _left(until) + PAUSE_SECONDS, f"shard {number}") for number, reference in waiting.items()}
            answers_of(keeping, ANSWER_SECONDS, "a shard")
            groups = {number: answer_of(actor.kept.remote(), ANSWER_SECONDS, f"shard {number}")[1] for number, actor in actors.items()}
        except BaseException:
            self._undo(actors, kept)
            raise
        for number, actor in actors.items():
            self._shards.add(number, actor, groups[number], found[number])

    def _undo(self, actors: dict[int, Any], kept: Any) -> None:
        ending = [(actor.stop if number in kept else actor.discard).remote() for number, actor in actors.items()]
        ray.wait(ending, num_returns=len(ending), timeout=ANSWER_SECONDS)
        for actor in actors.values():
            ray.kill(actor, no_restart=True)
        for number in actors:
            remove_group(f"tdreplay:{self._settings.name}:group:{number}")

    def _grow(self, shards: int, until: float) -> list[int]:
        if self._next + shards > MAX_SHARDS:
            raise InvalidArgumentError(f"the cluster had {self._next} shards, and {shards} more are above {MAX_SHARDS}: no number is given twice")
        new = list(range(self._next, self._next + shards))
        self._next += shards
        if new:
            self._start(new, {}, until)
        return new

    def _shrink(self, numbers: Sequence[int], mode: str, drain_seconds: float, until: float) -> Resized:
        leaves_at = time.time() + drain_seconds
        draining = [self._shards.actor(number).drain.remote(mode, leaves_at) for number in numbers]
        answers_of(draining, ANSWER_SECONDS, "a shard")
        self._ask_all()
        return self._let_go(numbers, mode, drain_seconds, until)

    def _let_go(self, numbers: Sequence[int], mode: str, drain_seconds: float, until: float) -> Resized:
        """Lets shards that are draining go.

        Before clients go on without one, its server is there for a while, so that whoever does not know whether rows were stored can ask again.
        """
        pause, before = drain_seconds, self._restarts(numbers, until)
        time.sleep(pause)
        while before != (now := self._restarts(numbers, until)):
            before = now
            time.sleep(REFRESH_SECONDS)
        targets = [number for number in self._shards.staying() if number not in numbers]
        for number in numbers:
            self._asked(number, "leave", until, targets)
        self._ask_all()
        time.sleep(REFRESH_SECONDS)
        emptied = [self._emptied(number, until) for number in numbers]
        return Resized(removed=tuple(numbers), moved_rows=sum(moved for moved, _ in emptied), dropped_rows=sum(dropped for _, dropped in emptied))

    def _restarts(self, numbers: Sequence[int], until: float) -> list[int]:
        """How often servers were started again, all of which are ready now."""
        return [self._asked(number, "ready", until, _left(until)).restarts for number in numbers]

    def _emptied(self, number: int, until: float) -> tuple[int, int]:
        """Empties a shard that leaves, and ends it. Where a target is restarted meanwhile, and has another address then, it goes on with that."""
        while True:
            record, _ = self._asked(number, "kept", until)
            addresses = {status.number: status.address for status in self._shards.statuses()}
            targets = [Target(each, addresses[each]) for each in record.targets if each in addresses]
            try:
                emptying = self._shards.actor(number).empty.remote(targets, min(MOVE_SECONDS, _left(until)))
                found: tuple[int, int] = answer_of(emptying, _left(until), f"shard {number}")
            except ServerUnavailableError as error:
                if time.monotonic() > until:
                    raise
                log.warning("shard %d is not empty yet: %s", number, error)
                time.sleep(PAUSE_SECONDS)
            else:
                self._end(number, self._shards.actor(number))
                return found

    def _asked(self, number: int, method: str, until: float, *arguments: Any) -> Any:
        """What a shard answers. While its actor is being restarted, it is asked again."""
        while True:
            try:
                return answer_of(getattr(self._shards.actor(number), method).remote(*arguments), _left(until), f"shard {number}")
            except ServerUnavailableError:
                if time.monotonic() > until:
                    raise
                time.sleep(PAUSE_SECONDS)

    def _end(self, number: int, actor: Any) -> None:
        ray.kill(actor, no_restart=True)
        group = self._shards.remove(number)
        if group is not None:
            remove_group(group)

    def _ask_all(self) -> None:
        """Learns at once how all shards are."""
        for actor in self._shards.actors().values():
            with suppress(ReplayError):
                self._shards.note(answer_of(actor.status.remote(), PAUSE_SECONDS, "a shard"))

    # -- after it was restarted ---------------------------------------------------------------------------------------------------------------

    def _find(self) -> None:
        """Finds the shards by the names of their actors. Those that were leaving go on with it."""
        beginning = shard_name(self._settings.name, "")
        names = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True) if entry["namespace"] == NAMESPACE]
        for number in sorted(int(name.removeprefix(beginning)) for name in names if name.startswith(beginning)):
            self._find_one(number)
        self._found.set()
        with self._change():
            self._go_on_leaving()

    def _find_one(self, number: int) -> None:
        actor = ray.get_actor(shard_name(self._settings.name, number), namespace=NAMESPACE)
        while True:
            try:
                record, group = answer_of(actor.kept.remote(), ANSWER_SECONDS, f"shard {number}")
                status = answer_of(actor.status.remote(), ANSWER_SECONDS, f"shard {number}")
            except ReplayError as error:
                log.warning("shard %d cannot be asked yet: %s", number, error)
                time.sleep(PAUSE_SECONDS)
            else:
                self._next = max(self._next, record.next_number, number + 1)
                self._shards.add(number, actor, group, status)
                return

    def _go_on_leaving(self) -> None:
        """Lets those go whose leaving was interrupted."""
        for number, actor in self._shards.actors().items():
            record, _ = answer_of(actor.kept.remote(), ANSWER_SECONDS, f"shard {number}")
            if record.mode and record.state in (DRAINING, LEAVING):
                log.info("shard %d goes on leaving", number)
                self._let_go([number], record.mode, max(0.0, record.leaves_at - time.time()), time.monotonic() + 3600.0)


def _left(until: float) -> float:
    return max(0.1, until - time.monotonic())
