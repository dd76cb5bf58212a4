"""Windows made by hand, from episodes that are lists: what a server sends for a query of windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict

from tdreplay.columns import to_tensordict
from tdreplay.windows import Window, WindowQuery


@dataclass
class Episode:
    """An episode of which each field is a tensor of its steps.

    Attributes:
        fields: The name of a field -> its values, [steps, ...].
        finals: The final observation: the name of a field -> its value. None: nobody gave it.
        first_row: The row id of the first step.
    """

    fields: dict[str, torch.Tensor]
    finals: dict[str, torch.Tensor] | None = None
    first_row: int = 100

    @property
    def steps(self) -> int:
        return len(next(iter(self.fields.values())))

    def at(self, name: str, step: int, window: Window) -> torch.Tensor:
        """The value of a field at a step of the episode."""
        values = self.fields[name]
        if step < 0 and window.repeat_first:
            return values[0]
        if 0 <= step < self.steps:
            return values[step]
        if step == self.steps and self.finals is not None and name in self.finals:
            return self.finals[name]
        return torch.full_like(values[0], -1 if name in ("index", "row_id") else 0)


def windows_of(query: WindowQuery, episode: Episode, anchors: list[int], device: str = "cpu", **drawn: torch.Tensor) -> TensorDict:
    """The windows of the anchors of an episode that ended, as a batch."""
    rows = torch.arange(episode.first_row, episode.first_row + episode.steps)
    known = Episode(episode.fields | {"index": rows % 64, "row_id": rows}, episode.finals if query.next_step else None)
    before = max(0, max(-w.first - (1 if w.at_horizon else 0) for w in query.windows))
    after = [min(query.steps, episode.steps - anchor) for anchor in anchors]
    columns: dict[str, torch.Tensor] = {
        "window_before": torch.tensor([min(before, anchor) for anchor in anchors]),
        "window_after": torch.tensor(after),
        "index": rows[anchors] % 64,
        "row_id": rows[anchors],
    }
    for name in known.fields:
        for window in _of_field(query, name, name in episode.fields):
            starts = [a + n if window.at_horizon else a for a, n in zip(anchors, after, strict=True)]
            places = [[known.at(name, start + at, window) for at in range(window.first, window.last + 1)] for start in starts]
            columns[f"{window.prefix}.{name}" if window.prefix else name] = torch.stack([torch.stack(steps) for steps in places])
    moved = {name: value.to(device) for name, value in (columns | drawn).items()}
    return to_tensordict(moved, (len(anchors),), torch.device(device))


def _of_field(query: WindowQuery, name: str, is_own: bool) -> list[Window]:
    """The windows that bring a field: of each prefix the one whose name is nearest to the field's."""
    found: dict[str, Window] = {}
    for window in sorted(query.windows, key=lambda window: len(window.field)):
        names = window.field == name or name.startswith(f"{window.field}.") or (not window.field and is_own)
        if names:
            found[window.prefix] = window
    return list(found.values())


def episode_of(steps: int, *, terminated: bool = False, truncated: bool = False, final: bool = True, **fields: Any) -> Episode:
    """An episode of so many steps: `obs` [2] is 10 t and 10 t + 1 at step t, `action` is t, and `reward` 1 + t / 8."""
    numbers = torch.arange(steps)
    obs = torch.stack([10.0 * numbers, 10.0 * numbers + 1], dim=1)
    last = numbers == steps - 1
    columns = {
        "obs": obs,
        "action": numbers,
        "reward": 1 + numbers / 8,
        "terminated": last & terminated,
        "truncated": last & truncated,
        "episode_id": torch.full((steps,), 77),
        "step": numbers,
    }
    return Episode(columns | fields, {"obs": torch.tensor([10.0 * steps, 10.0 * steps + 1])} if final else None)
