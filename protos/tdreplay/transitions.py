"""Transitions, made of steps when they are sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict

from tdreplay.columns import to_tensordict
from tdreplay.errors import InvalidArgumentError
from tdreplay.field_names import field_name
from tdreplay.limits import check_choice, check_number, check_whole, shown
from tdreplay.system_fields import STEP_NAMES, SYSTEM_NAMES
from tdreplay.trajectories import Trajectories
from tdreplay.views import View, WindowColumns, nearest
from tdreplay.windows import MAX_WINDOW_STEPS, Window, WindowQuery

__all__ = ["Transitions"]

NEXT = "next"
DONE, DISCOUNT, N_STEPS = "done", "discount", "n_steps"


@dataclass(frozen=True)
class _Frames:
    """How a field comes.

    Attributes:
        stack: The number of frames; 0: one, without a dimension for it.
        final: Whether it comes after the transition, too.
    """

    stack: int
    final: bool

    @property
    def count(self) -> int:
        return max(1, self.stack)


@dataclass(frozen=True)
class Transitions(View):
    """Each anchor becomes a transition of `n_step` steps.

    A batch has batch size [n] and these fields:

    - The fields of observations (the table's `final_fields`) before the transition, at their names, and after it at ``("next", name)``. A field in
      `frame_stack` has shape [n, k, *field shape], the newest frame last, as of Gymnasium's FrameStackObservation; any other [n, *field shape].
    - All other fields as at the anchor. A stacked one has shape [n, k, *field shape].
    - ``("next", reward)``: r_0 + gamma r_1 + ... + gamma^(m-1) r_(m-1), of the m steps that were taken. It has the reward's dtype and shape; a reward
      of whole numbers becomes float32.
    - ``("next", terminated)``, ``("next", truncated)``: whether the episode ended so within these steps, and ``("next", "done")``: either. Their
      shapes are those of the fields.
    - ``n_steps`` (int64 [n]): m, which is less than `n_step` at the end of an episode.
    - ``discount`` (float32 [n]): what the value of the next observation counts for: gamma^m, and 0 after a termination, but not after a truncation.
    - ``index``, ``row_id``, ``episode_id`` and ``step`` of the anchor, and what is known of its draw.

    So a target is ``next.reward + discount * value(next.obs)`` in every case. After a termination whose final observation nobody gave, the next
    observation is 0.

    The stacks and the next observations are views of one memory where they overlap (n_step 1): do not change one in place.

    Attributes:
        n_step: The number of steps of a transition.
        gamma: The discount of one step.
        frame_stack: The name of a field -> how many of its frames come, the anchor's own included. Nested keys are joined with '.' or are tuples; the
            name of a parent stands for all fields below it.
        padding: What the frames before the first step of an episode are: "repeat", the first frame; "zeros", 0.
        names: "torchrl": as above. "plain": the next observation of ``obs`` is ``next_obs``, and that of ``("obs", "image")`` is
            ``("next_obs", "image")``; reward, ends and ``done`` are at their own names.

    Raises:
        InvalidArgumentError: an argument breaks its rule.
    """

    n_step: int = 1
    gamma: float = 0.99
    frame_stack: Mapping[Any, int] = field(default_factory=dict, hash=False)
    padding: str = "repeat"
    names: str = "torchrl"

    def __post_init__(self) -> None:
        check_choice(self.padding, "padding", ("repeat", "zeros"))
        check_choice(self.names, "names", ("torchrl", "plain"))
        object.__setattr__(self, "n_step", check_whole(self.n_step, "n_step", 1, MAX_WINDOW_STEPS))
        object.__setattr__(self, "gamma", check_number(self.gamma, "gamma", 0, 1))
        object.__setattr__(self, "frame_stack", _checked_stack(self.frame_stack))

    # -- what is asked for --------------------------------------------------------------------------------------------------------------------

    def query(self, trajectories: Trajectories) -> WindowQuery:
        """One window of each observation that has both its stacks where `n_step` is 1; else two of them. As in `View`.

        Raises:
            InvalidArgumentError: `frame_stack` names the reward, an end, or a system field.
        """
        self._check_stack(trajectories)
        windows = [window for name, frames in self._frames(trajectories).items() for window in self._windows_of(name, frames)]
        outcome = [Window(name, 0, self.n_step - 1) for name in trajectories.ends]
        if trajectories.reward:
            outcome.append(Window(trajectories.reward, 0, self.n_step - 1, optional=True))
        return WindowQuery((*windows, *outcome, Window("")), steps=self.n_step, next_step=True)

    def _windows_of(self, name: str, frames: _Frames) -> list[Window]:
        first, repeat = 1 - frames.count, self.padding == "repeat"
        if frames.final and self.n_step == 1:
            return [Window(name, first, 1, repeat_first=repeat)]
        now = Window(name, first, 0, repeat_first=repeat)
        return [now, Window(name, first, 0, NEXT, at_horizon=True, repeat_first=repeat)] if frames.final else [now]

    def _frames(self, trajectories: Trajectories) -> dict[str, _Frames]:
        """How each field comes that is an observation or stacked: of the names that are given, the nearest one to a field's counts."""
        finals = dict.fromkeys(trajectories.final_fields, True)
        return {name: _Frames(nearest(name, self.frame_stack) or 0, bool(nearest(name, finals))) for name in (*finals, *self.frame_stack)}

    def _check_stack(self, trajectories: Trajectories) -> None:
        others = {*trajectories.ends, trajectories.reward, *SYSTEM_NAMES, *STEP_NAMES}
        wrong = next((name for name in self.frame_stack if name in others), None)
        if wrong is not None:
            raise InvalidArgumentError(
                f"frame_stack ({wrong!r}) must name fields of steps, but not the reward, an end of an episode, or a system field"
            )

    # -- what is made of it -------------------------------------------------------------------------------------------------------------------

    def made_of(self, windows: WindowColumns, trajectories: Trajectories) -> TensorDict:
        """As in `View`. Sums of rewards are new memory; all other fields of steps are views."""
        frames = self._frames(trajectories)
        outcome = [name for name in (*trajectories.ends, trajectories.reward) if name in windows.steps]
        found: dict[str, torch.Tensor] = {}
        for name in windows.steps:
            if name not in outcome:
                self._add_field(found, windows, name, frames)
        found |= windows.anchors | self._outcome(windows, trajectories)
        return to_tensordict(found, (windows.rows,), windows.device)

    def _add_field(self, found: dict[str, torch.Tensor], windows: WindowColumns, name: str, frames: Mapping[str, _Frames]) -> None:
        of_next = self._after(name, frames)
        if of_next is not None:
            own = name.removeprefix(f"{NEXT}.")
            found[self._next_name(own)] = _stack(windows.check(name, of_next.count), of_next)
            return
        here = nearest(name, frames) or _Frames(0, final=False)
        both = here.final and self.n_step == 1
        window = windows.check(name, here.count + both)
        found[name] = _stack(window, here)
        if both:
            found[self._next_name(name)] = _stack(window, here, 1)

    def _after(self, name: str, frames: Mapping[str, _Frames]) -> _Frames | None:
        """How the field before it comes, if this is an observation at the horizon."""
        before = nearest(name.removeprefix(f"{NEXT}."), frames) if self.n_step > 1 and name.startswith(f"{NEXT}.") else None
        return before if before is not None and before.final else None

    def _outcome(self, windows: WindowColumns, trajectories: Trajectories) -> dict[str, torch.Tensor]:
        """What came of the transitions: rewards, ends, and what the next observation counts for."""
        found: dict[str, torch.Tensor] = {}
        ends = {name: windows.check(name, self.n_step).any(1) if self.n_step > 1 else windows.check(name, 1)[:, 0] for name in trajectories.ends}
        terminated = ends[trajectories.terminated]
        found[self._outcome_name(DONE)] = _either(terminated, ends[trajectories.truncated]) if trajectories.truncated else terminated
        found |= {self._outcome_name(name): value for name, value in ends.items()}
        if trajectories.reward in windows.steps:
            found[self._outcome_name(trajectories.reward)] = self._return(windows.check(trajectories.reward, self.n_step))
        return found | {DISCOUNT: self._powers(windows).masked_fill_(_one_a_row(terminated), 0), N_STEPS: windows.after}

    def _powers(self, windows: WindowColumns) -> torch.Tensor:
        """Gamma to the steps that were taken."""
        if self.n_step == 1:
            return torch.full((windows.rows,), self.gamma, dtype=torch.float32, device=windows.device)
        return torch.pow(self.gamma, windows.after.to(_exact_dtype(windows.device))).to(torch.float32)

    def _return(self, rewards: torch.Tensor) -> torch.Tensor:
        """The discounted sum of rewards [n, n_step, ...]. Those after the end of an episode are 0."""
        dtype = rewards.dtype if rewards.is_floating_point() or rewards.is_complex() else torch.float32
        if self.n_step == 1:
            return rewards[:, 0].to(dtype)
        powers = torch.pow(self.gamma, torch.arange(self.n_step, dtype=_exact_dtype(rewards.device), device=rewards.device))
        return (rewards * powers.view(-1, *[1] * (rewards.dim() - 2))).sum(1).to(dtype)

    def _next_name(self, name: str) -> str:
        return f"{NEXT}.{name}" if self.names == "torchrl" else f"{NEXT}_{name}"

    def _outcome_name(self, name: str) -> str:
        return f"{NEXT}.{name}" if self.names == "torchrl" else name


def _checked_stack(frame_stack: Mapping[Any, int]) -> dict[str, int]:
    if not isinstance(frame_stack, Mapping):
        raise InvalidArgumentError(f"frame_stack ({shown(frame_stack)}) must be a mapping: the name of a field -> a number of frames")
    given = [(_checked_name(key), key, count) for key, count in frame_stack.items()]
    found = {name: check_whole(count, f"frame_stack of {shown(key)}", 1, MAX_WINDOW_STEPS) for name, key, count in given}
    if len(found) < len(given):
        raise InvalidArgumentError(f"frame_stack ({shown(frame_stack)}) must name each field once")
    return found


def _checked_name(key: Any) -> str:
    try:
        name = field_name(key)
    except TypeError:
        name = ""
    if not name:
        raise InvalidArgumentError(f"frame_stack: {shown(key)} must be the name of a field, or a tuple of its keys")
    return name


def _stack(window: torch.Tensor, frames: _Frames, first: int = 0) -> torch.Tensor:
    """The frames from place `first` of a window on: a view."""
    return window[:, first : first + frames.stack] if frames.stack else window[:, first]


def _either(terminated: torch.Tensor, truncated: torch.Tensor) -> torch.Tensor:
    if terminated.shape == truncated.shape:
        return terminated | truncated
    return _one_a_row(terminated) | _one_a_row(truncated)


def _one_a_row(flags: torch.Tensor) -> torch.Tensor:
    return flags.flatten(1).any(1) if flags.dim() > 1 else flags


def _exact_dtype(device: torch.device) -> torch.dtype:
    """The dtype in which powers and sums are computed: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
