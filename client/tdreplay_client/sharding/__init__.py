"""One buffer out of the tables of several servers, which do not know each other: the shards.

`docs/scale.md` says what it does, ADR 34 why so.
"""
