"""What a table is made with: one value, from the request that makes it to the directory that keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

from tdreplay.errors import InvalidArgumentError
from tdreplay.limits import MAX_ROW_ID, check_whole
from tdreplay.named_settings import NamedSetting
from tdreplay.rate_limiters import MinSize, Queue, RateLimiter, SamplesPerInsert, Unlimited, rate_limiter_of
from tdreplay.samplers import Sampler, Uniform, sampler_of
from tdreplay.trajectories import Trajectories, trajectories_of

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_TIMES_SAMPLED", "SETTINGS", "TableConfig", "TableRequest", "check_drawable", "check_limiter"]

SETTINGS = ("buffer_size", "storing_device", "sampler", "rate_limiter", "max_times_sampled", "trajectories")
"""The settings of a table, in order."""

MAX_TIMES_SAMPLED = (1 << 31) - 1
"""The largest `max_times_sampled`."""

UNIFORM, UNLIMITED = Uniform(), Unlimited()


@dataclass(frozen=True)
class TableConfig:
    """What a table is made with. A reset may give it another capacity; nothing else of it changes.

    Attributes:
        buffer_size: The capacity, in rows.
        storing_device: Where the rows lie: ``cpu``, in files that are mapped into memory, or ``cuda:N``.
        sampler: What chooses the rows of a batch.
        rate_limiter: What decides who has to wait.
        max_times_sampled: How often a row is drawn before it leaves; 0: any number of times.
        trajectories: What is known of the episodes whose steps the rows are; False: the rows are no steps.
        name: The table's name; '' for a buffer in process. The directory of a table does not hold it, because it is named after it.
    """

    buffer_size: int
    storing_device: str = "cpu"
    sampler: Sampler = UNIFORM
    rate_limiter: RateLimiter = UNLIMITED
    max_times_sampled: int = 0
    trajectories: Trajectories | Literal[False] = False
    name: str = ""

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> TableConfig:
        """The settings among the entries that `to_json` gave.

        Raises:
            InvalidArgumentError: one of them breaks its rule.
            KeyError: one is missing.
        """
        return TableRequest.of(**{setting: entries[setting] for setting in SETTINGS}, of_shard=True).config("")

    def to_json(self) -> dict[str, Any]:
        """All but the name."""
        return _to_json(self, SETTINGS)

    def resized(self, buffer_size: int) -> TableConfig:
        """The same table with another capacity."""
        return replace(self, buffer_size=buffer_size)

    @property
    def is_consuming(self) -> bool:
        """Whether rows leave when they were drawn often enough."""
        return self.max_times_sampled > 0


@dataclass(frozen=True)
class TableRequest:
    """What somebody asks of a table: the settings of `TableConfig`. What is None was not said.

    A new table has the default of a setting that was not said. In a table that is there, it may be anything.
    """

    buffer_size: int | None = None
    storing_device: str | None = None
    sampler: Sampler | None = None
    rate_limiter: RateLimiter | None = None
    max_times_sampled: int | None = None
    trajectories: Trajectories | Literal[False] | None = None
    name: str = ""

    @classmethod
    def of(
        cls,
        buffer_size: SupportsIndex | None = None,
        storing_device: torch.device | str | None = None,
        sampler: object = None,
        rate_limiter: object = None,
        max_times_sampled: SupportsIndex | None = None,
        trajectories: object = None,
        name: str = "",
        *,
        of_shard: bool = False,
    ) -> TableRequest:
        """The request of somebody, checked. Whether the device is there is not.

        Args:
            buffer_size: As in `TableConfig`.
            storing_device: The same. An empty one was not said.
            sampler: As in `samplers.sampler_of`.
            rate_limiter: As in `rate_limiters.rate_limiter_of`.
            max_times_sampled: As in `TableConfig`.
            trajectories: As in `trajectories.trajectories_of`.
            name: As in `TableConfig`.
            of_shard: Whether the table may be one shard of a buffer, whose part of a `min_size` may be 0.

        Raises:
            InvalidArgumentError: a setting breaks its rule.
        """
        limiter = None if rate_limiter is None else rate_limiter_of(rate_limiter)
        if isinstance(limiter, (MinSize, SamplesPerInsert)) and not of_shard:
            check_whole(limiter.min_size, "min_size", 1)
        return cls(
            buffer_size=None if buffer_size is None else check_whole(buffer_size, "buffer_size", 1, MAX_ROW_ID),
            storing_device=_device(storing_device) if storing_device else None,
            sampler=None if sampler is None else sampler_of(sampler),
            rate_limiter=limiter,
            max_times_sampled=None if max_times_sampled is None else check_whole(max_times_sampled, "max_times_sampled", 0, MAX_TIMES_SAMPLED),
            trajectories=None if trajectories is None else trajectories_of(trajectories),
            name=name,
        )

    @classmethod
    def of_config(cls, config: TableConfig) -> TableRequest:
        """The request for a table with all of these settings."""
        return cls(**vars(config))

    def config(self, storing_device: str) -> TableConfig:
        """The settings of a new table.

        Args:
            storing_device: Where its rows lie if that was not said.

        Raises:
            InvalidArgumentError: the capacity was not said.
        """
        if self.buffer_size is None:
            raise InvalidArgumentError(f"table {self.name!r} needs a buffer_size: the capacity, in rows")
        said = {setting: value for setting, value in vars(self).items() if value is not None}
        return TableConfig(**({"storing_device": storing_device} | said))

    def to_json(self) -> dict[str, Any]:
        """The settings that were said."""
        return _to_json(self, self._said)

    def differing(self, found: TableConfig) -> list[str]:
        """The settings that were said and are others in a table that is there, in their order."""
        return [setting for setting in self._said if getattr(found, setting) != getattr(self, setting)]

    def differences(self, found: TableConfig) -> list[str]:
        """Each of them in words: '<setting> <found>, not <said>'."""
        return [f"{setting} {getattr(found, setting)}, not {getattr(self, setting)}" for setting in self.differing(found)]

    @property
    def _said(self) -> list[str]:
        return [setting for setting in SETTINGS if getattr(self, setting) is not None]


def _to_json(settings: TableConfig | TableRequest, names: Iterable[str]) -> dict[str, Any]:
    values = ((name, getattr(settings, name)) for name in names)
    return {name: value.to_json() if isinstance(value, (NamedSetting, Trajectories)) else value for name, value in values}


def _device(name: torch.device | str) -> str:
    """One name for each device: ``cuda`` is the current CUDA device, if there is any."""
    if name == "cpu":
        return name
    import torch  # Here: it takes a second, and most settings name no other device.

    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidArgumentError(f"storing_device ({str(name)[:80]!r}) must be cpu or cuda:N") from None
    if device.type == "cpu":
        return "cpu"
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return str(device)


def check_limiter(config: TableConfig) -> None:
    """Passes where a table with these settings may always go on, with batches and inserts of one row at least.

    To be called when a table is made, and before it gets another capacity.

    Raises:
        InvalidArgumentError: both sides would come to wait for ever. The message names the two settings.
    """
    limiter, buffer_size, times = config.rate_limiter, config.buffer_size, config.max_times_sampled
    if config.trajectories and times:
        raise InvalidArgumentError(f"max_times_sampled ({times}) must be 0 in a table of trajectories: steps that left would be missing in windows")
    if isinstance(limiter, (MinSize, SamplesPerInsert)) and limiter.min_size > buffer_size:
        _refuse("min_size", limiter.min_size, "buffer_size", buffer_size, "so many rows would never be there, and no batch would be drawn")
    if isinstance(limiter, Queue) and limiter.max_size > buffer_size:
        _refuse("max_size", limiter.max_size, "buffer_size", buffer_size, "rows would be overwritten before the queue is full")
    if isinstance(limiter, SamplesPerInsert) and limiter.samples_per_insert > times > 0:
        ends = "all rows would leave before they were drawn so often, and inserts would wait for ever"
        _refuse("samples_per_insert", limiter.samples_per_insert, "max_times_sampled", times, ends)


def check_drawable(config: TableConfig, rows: int) -> None:
    """Passes where a batch of so many rows may be drawn some day.

    Raises:
        InvalidArgumentError: the table never holds so many. The message says how many it holds.
    """
    limiter, times, never = config.rate_limiter, config.max_times_sampled, f"a batch of {rows} rows can never be drawn"
    if isinstance(limiter, Queue) and rows > limiter.max_size:
        most = limiter.max_size
        raise InvalidArgumentError(f"{never}: the queue holds {most} rows at most (max_size). Give it a max_size of {rows}")
    if config.is_consuming and rows > config.buffer_size * times:
        raise InvalidArgumentError(f"{never}: the table has {config.buffer_size} rows at most, each of which is drawn {times} times at most")


def _refuse(name: str, value: float, bound: str, most: int, reason: str) -> None:
    raise InvalidArgumentError(f"{name} ({value}) must not be above {bound} ({most}): {reason}")
