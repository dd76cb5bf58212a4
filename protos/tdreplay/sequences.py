"""Sequences: consecutive steps of one episode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDict

from tdreplay.columns import to_tensordict
from tdreplay.limits import check_choice, check_flag, check_whole
from tdreplay.system_fields import BURN_IN, EPISODE_ID, INDEX, IS_INIT, MASK, ROW_ID, STEP, STEP_NAMES
from tdreplay.trajectories import Trajectories
from tdreplay.views import View, WindowColumns, nearest
from tdreplay.windows import MAX_WINDOW_STEPS, Window, WindowQuery

__all__ = ["Sequences"]

IDS = "steps"


@dataclass(frozen=True)
class Sequences(View):
    """Each anchor becomes a sequence: `burn_in` steps before it, the anchor, and the steps after it, `length` of them with the anchor.

    A batch has batch size [n, T], where T is burn_in + length, and these fields:

    - All fields of the steps, of shape [n, T, *field shape]. No step is of another episode than the anchor. Where there is no step, they are 0.
    - ``mask`` (bool [n, T]): a step is there. It is False before the first step of an episode and after its end.
    - ``is_init`` (bool [n, T]): the step is the first one of its episode, so a recurrent state begins here.
    - ``burn_in`` (bool [n, T]): the place is before the anchor. These steps warm a recurrent state up, and are not trained:
      ``batch["mask"] & ~batch["burn_in"]`` says which are.
    - ``index`` and ``row_id`` of the anchor, and what is known of its draw: one value for each sequence, expanded to [n, T].

    Attributes:
        length: The number of steps from the anchor on.
        burn_in: The number of steps before the anchor. They have to be there, but for those before the first step of an episode.
        stride: Steps whose number in the episode is a multiple of this are anchors. Stride 1: each step.
        padding: "right": a sequence may reach past the end of its episode, and has no steps there. "drop": each has `length` steps from the anchor
            on. In both cases none reaches past the steps of an episode that did not end, because nobody knows what comes there.
        next_obs: Whether the observations after each step come, too, at ``("next", name)``. They share the memory of those before: do not change
            them in place. So where `mask` is False, the place after the last step has the final observation, and the next observation before the
            first step is the first one.
        step_ids: Whether ``("steps", "index")`` and ``("steps", "row_id")`` come, int64 [n, T]: those of each step, and -1 where there is none.

    Raises:
        InvalidArgumentError: an argument breaks its rule.
    """

    length: int
    burn_in: int = 0
    stride: int = 1
    padding: str = "right"
    next_obs: bool = False
    step_ids: bool = False

    def __post_init__(self) -> None:
        check_choice(self.padding, "padding", ("right", "drop"))
        least = {"length": 1, "burn_in": 0, "stride": 1}
        checked = {name: check_whole(getattr(self, name), name, low, MAX_WINDOW_STEPS) for name, low in least.items()}
        for name, value in (checked | {name: check_flag(getattr(self, name), name) for name in ("next_obs", "step_ids")}).items():
            object.__setattr__(self, name, value)

    def query(self, trajectories: Trajectories) -> WindowQuery:
        """One window of each field. As in `View`."""
        first, last = -self.burn_in, self.length - 1
        windows = [Window(name, first, self.length) for name in trajectories.final_fields] if self.next_obs else []
        ids = [Window(field.name, first, last, IDS) for field in (INDEX, ROW_ID)] if self.step_ids else []
        # What the anchor's say of all steps does not travel for each.
        every = (*windows, *ids, *(Window(field.name) for field in (EPISODE_ID, STEP)), Window("", first, last))
        return WindowQuery(every, steps=self.length, next_step=self.next_obs, whole=self.padding == "drop", stride=self.stride)

    def made_of(self, windows: WindowColumns, trajectories: Trajectories) -> TensorDict:
        """As in `View`."""
        steps = self.burn_in + self.length
        finals = dict.fromkeys(trajectories.final_fields, True) if self.next_obs else {}
        found: dict[str, torch.Tensor] = {}
        for name in windows.steps:
            if name in STEP_NAMES:
                continue
            if nearest(name, finals):
                window = windows.check(name, steps + 1)
                found |= {name: window[:, :-1], f"next.{name}": window[:, 1:]}
            else:
                found[name] = windows.check(name, steps)
        return to_tensordict(found | windows.anchors | self._places(windows), (windows.rows, steps), windows.device)

    def _places(self, windows: WindowColumns) -> dict[str, torch.Tensor]:
        """What there is at each place, and the number of the step there."""
        steps = self.burn_in + self.length
        places = torch.arange(-self.burn_in, self.length, device=windows.device)
        mask = places < windows.after.unsqueeze(1)
        if self.burn_in:
            mask &= places >= -windows.before.unsqueeze(1)
        step = (windows.check(STEP.name, 1) + places) * mask
        return {
            EPISODE_ID.name: windows.check(EPISODE_ID.name, 1) * mask,
            STEP.name: step,
            MASK: mask,
            IS_INIT: mask & (step == 0),
            BURN_IN: (places < 0).expand(windows.rows, steps),
        }
