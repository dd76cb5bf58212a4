"""Reads the whole table, and prints what of each actor is in it: rows, distinct numbers, the highest number, and rows that are not whole."""

from __future__ import annotations

import json

from rows import opened, wrong


def main() -> None:
    with opened() as buffer:
        everything = buffer.sample_all()
    for actor in everything["actor"].unique().tolist():
        own = everything[everything["actor"] == actor]
        numbers = own["number"]
        print(json.dumps({"actor": actor, "rows": len(own), "distinct": len(numbers.unique()), "last": int(numbers.max()), "wrong": wrong(own)}))


if __name__ == "__main__":
    main()
