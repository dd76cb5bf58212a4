"""Epochs as the wire has them: the query of a call, and where a learner stands after a batch."""

from __future__ import annotations

from tdreplay.epochs import EpochPlace, EpochPlan, EpochQuery
from tdreplay.errors import InvalidArgumentError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.window_messages import window_query_from_message, window_query_to_message

__all__ = ["epoch_query_from_message", "place_from_message", "plan_from_message", "plan_to_message", "progress_from_message", "progress_to_message"]

ON_OVERWRITE = {"skip": pb.ON_OVERWRITE_SKIP, "raise": pb.ON_OVERWRITE_RAISE, "replace": pb.ON_OVERWRITE_REPLACE}
NAMES = {pb.ON_OVERWRITE_UNSPECIFIED: "replace", **{value: name for name, value in ON_OVERWRITE.items()}}


def plan_to_message(plan: EpochPlan, place: EpochPlace) -> pb.EpochRequest:
    """The query that asks for the batches of `plan` from `place` on."""
    query = plan.query
    return pb.EpochRequest(
        table=plan.table,
        batch_size=query.batch_size,
        fields=query.fields,
        n_epochs=query.n_epochs,
        shuffle=query.shuffle,
        seed=plan.seed,
        drop_last=query.drop_last,
        on_overwrite=ON_OVERWRITE[query.on_overwrite],
        rank=query.rank,
        world_size=query.world_size,
        generation_id=plan.generation_id,
        first_row_id=plan.first_row_id,
        end_row_id=plan.end_row_id,
        epoch=place.epoch,
        position=place.position,
        windows=None if query.windows is None else window_query_to_message(query.windows),
    )


def epoch_query_from_message(message: pb.EpochRequest, fields: tuple[str, ...] | None) -> EpochQuery:
    """The arguments that a query has. `fields`: the fields that it asks for.

    Raises:
        InvalidArgumentError: one is out of its range.
    """
    if message.on_overwrite not in NAMES:
        raise InvalidArgumentError(f"on_overwrite ({message.on_overwrite}) must be 0 to {max(NAMES)}")
    seed = message.seed if message.HasField("seed") else None
    return EpochQuery(
        message.batch_size,
        message.n_epochs or 1,
        message.shuffle,
        seed,
        message.drop_last,
        fields,
        message.rank,
        message.world_size or 1,
        NAMES[message.on_overwrite],
        window_query_from_message(message.windows) if message.HasField("windows") else None,
    )


def plan_from_message(message: pb.EpochRequest, query: EpochQuery, *, of_steps: bool) -> EpochPlan:
    """The plan of a query that names its window. `of_steps`: whether the rows of its table are steps."""
    rows = range(message.first_row_id, message.end_row_id)
    return EpochPlan.over(query, message.table, message.generation_id, rows, query.seed, of_steps=of_steps)


def place_from_message(message: pb.EpochRequest) -> EpochPlace:
    """Where a query begins."""
    return EpochPlace(message.epoch, message.position)


def progress_to_message(place: EpochPlace) -> pb.EpochProgress:
    """The message for a place."""
    return pb.EpochProgress(epoch=place.epoch, position=place.position, overwritten=place.overwritten)


def progress_from_message(message: pb.EpochProgress) -> EpochPlace:
    """The place that a message says."""
    return EpochPlace(message.epoch, message.position, message.overwritten)
