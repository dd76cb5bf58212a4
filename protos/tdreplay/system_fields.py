"""The system fields: what a server knows of each row beside the fields that users insert.

They are declared here and nowhere else. Schemas, blocks, TensorDicts, the server's reads and its files follow from `SYSTEM_FIELDS`. A new system
field needs one more entry, and a source of its values. If they are computed when rows are read, their source is an entry in
`tdreplay_server.tables.system_values`. If they are persisted, they are inserted as a column beside the user's own.

`DRAWN_FIELDS` are known of a row because of the draw that it came with: random batches of tables with priorities have them.

`STEP_FIELDS` are columns of tables of trajectories alone, which their writers insert beside the user's own. `WINDOW_FIELDS` are known of an anchor
because of the window that it came with.

A user's field cannot have the name of a system field. It may have that of a drawn field, in tables without priorities. A batch that was sampled can
be inserted again: its system fields are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import torch

from tdreplay.fields import Field

__all__ = [
    "BURN_IN",
    "DRAWN_FIELDS",
    "DRAWN_NAMES",
    "EPISODE_ID",
    "INDEX",
    "IS_INIT",
    "LOST_SHARDS",
    "MASK",
    "MIN_PROBABILITY",
    "NAMEABLE_FIELDS",
    "PERSISTED_FIELDS",
    "PRIORITY",
    "PROBABILITY",
    "ROW_ID",
    "SENT_FIELDS",
    "SEQUENCE_NAMES",
    "STEP",
    "STEP_FIELDS",
    "STEP_KIND",
    "STEP_NAMES",
    "SYSTEM_FIELDS",
    "SYSTEM_NAMES",
    "TABLE_SIZE",
    "WINDOW_AFTER",
    "WINDOW_BEFORE",
    "WINDOW_FIELDS",
    "WINDOW_NAMES",
    "StepKind",
    "SystemField",
]


@dataclass(frozen=True, eq=False)  # Two fields are compared as `Field` does it: by what lies in a block.
class SystemField(Field):
    """A field that the server adds to every row.

    A row has one value of it, also where the row is itself a batch. In a TensorDict this value is expanded to the whole batch size. Its dtype is one
    that NumPy has, too.

    Attributes:
        persisted: whether the values lie in the table's files and in its checkpoints, beside the rows. If not, they are computed when rows are read.
        sent: whether a request that names no fields gets it.
        nameable: whether a request may name it.
    """

    persisted: bool
    sent: bool
    nameable: bool


INDEX = SystemField("index", torch.int64, (), persisted=False, sent=True, nameable=True)
"""The slot of the row."""

ROW_ID = SystemField("row_id", torch.int64, (), persisted=False, sent=True, nameable=True)
"""The number of the row since its table began."""

SYSTEM_FIELDS = (INDEX, ROW_ID)
"""All of them, in the order in which a batch has them."""

PROBABILITY = SystemField("probability", torch.float64, (), persisted=False, sent=False, nameable=False)
"""How probable the row was when it was drawn."""

PRIORITY = SystemField("priority", torch.float64, (), persisted=False, sent=False, nameable=False)
"""The priority of the row when it was drawn."""

TABLE_SIZE = SystemField("table_size", torch.int64, (), persisted=False, sent=False, nameable=False)
"""The number of rows among which the row was drawn: the same in all rows of a batch."""

MIN_PROBABILITY = SystemField("min_probability", torch.float64, (), persisted=False, sent=False, nameable=False)
"""The smallest probability above 0 that a row had then: the same in all rows of a batch."""

DRAWN_FIELDS = (PROBABILITY, PRIORITY, TABLE_SIZE, MIN_PROBABILITY)
"""What a random batch says of its draw. The first two travel in the blocks, the others once a message."""

EPISODE_ID = SystemField("episode_id", torch.int64, (), persisted=True, sent=True, nameable=True)
"""The number of the episode of a step, from 0 up: no other episode of the table has it."""

STEP = SystemField("step", torch.int64, (), persisted=True, sent=True, nameable=True)
"""The number of a step in its episode, from 0 up. The final observation has the number after that of the last step."""

STEP_KIND = SystemField("step_kind", torch.uint8, (), persisted=True, sent=False, nameable=True)
"""What a row is to its episode: a `StepKind`."""

STEP_FIELDS = (EPISODE_ID, STEP, STEP_KIND)
"""What the writer of a trajectory says of each row."""

WINDOW_BEFORE = SystemField("window_before", torch.int64, (), persisted=False, sent=False, nameable=False)
"""How many steps before the anchor are in its window: fewer than were asked for at the beginning of an episode."""

WINDOW_AFTER = SystemField("window_after", torch.int64, (), persisted=False, sent=False, nameable=False)
"""How many steps from the anchor on are in its window, itself included: fewer than were asked for at the end of an episode."""

WINDOW_FIELDS = (WINDOW_BEFORE, WINDOW_AFTER)
"""What a batch of windows says of each anchor."""

MASK, IS_INIT, BURN_IN = "mask", "is_init", "burn_in"
"""What a client adds to a batch of sequences: see `Sequences`."""

SEQUENCE_NAMES = frozenset({MASK, IS_INIT, BURN_IN})
"""All of them. A batch that has them is one of sequences."""


class StepKind(IntFlag):
    """What a row is to its episode."""

    STEP = 0
    """A step after which the episode goes on."""
    TERMINATED = 1
    """The last step: the episode terminated."""
    TRUNCATED = 2
    """The last step: the episode was truncated."""
    FINAL_FOLLOWS = 4
    """With one of these: the next row of the episode is its final observation."""
    FINAL = 8
    """No step: the final observation. Its other fields are 0."""


LOST_SHARDS = "lost_shards"
"""The field of a batch that says how many shards were not drawn from, where a buffer over shards goes on without those that are lost. Its client adds
it, unless the rows have a field of that name."""

DRAWN_NAMES = frozenset(field.name for field in DRAWN_FIELDS)
STEP_NAMES = frozenset(field.name for field in STEP_FIELDS)
WINDOW_NAMES = frozenset(field.name for field in WINDOW_FIELDS)
SYSTEM_NAMES = frozenset(field.name for field in SYSTEM_FIELDS)
PERSISTED_FIELDS = tuple(field for field in SYSTEM_FIELDS if field.persisted)
SENT_FIELDS = tuple(field for field in SYSTEM_FIELDS if field.sent)
NAMEABLE_FIELDS = tuple(field for field in SYSTEM_FIELDS if field.nameable)
