"""The plan for many shards, against arithmetic by hand."""

from __future__ import annotations

from benchmarks.markdown import rounded, table
from benchmarks.scale_plan import Costs, Plan, plan_rows

COSTS = Costs(
    inserts={"small": 20e-6, "image": 100e-6},
    draws={"small": 4e-6, "image": 40e-6},
    row_bytes={"small": 165, "image": 56_000},
    question_client=0.5e-3,
    question_server=1e-3,
    connections=1.0,
    threads=3.0,
)


def test_a_plan_says_what_servers_and_learners_need():
    plan = Plan(rows=1000, actors=100, actor_rows=10, learners=4, batches=50, batch=200)
    found = {name: cells for name, *cells in plan_rows(plan, COSTS, {10: 7.0, 1000: 150.0})}
    assert found["actors"] == ["1,000", "100,000"]
    assert found["inserts of all actors, rows/s"] == ["10,000", "1,000,000"]
    assert found["draws of all learners, rows/s"] == ["40,000", "40,000"]
    assert found["small rows: cores of each server, inserts and draws"] == ["0.02, 0.02", "0.02, 0.0002"]
    assert found["image rows: the same, MB/s"] == ["56, 220", "56, 2.2"]
    assert found["rows of a batch from one shard"] == ["20", "0.2"]
    assert found["how old a draw of a stream can be"] == ["8 batches, 0.16 s", "640 batches, 13 s"]  # 80 or 64 rows, 2 such packets of each shard.
    assert found["shards that a single batch asks"] == ["10", "181"]
    assert found["a single batch, to that of one shard: p50"] == ["7 times", "150 times"]
    assert found["connections of a server, each client to all shards"] == ["1,004", "100,004: too many"]
    assert found["the same, each actor to one shard"] == ["104", "104"]
    assert found["threads of a learner"] == ["30", "3,000"]
    assert found["cores of the learner for them"] == ["0.05", "5"]
    assert found["cores of each server for those of all learners"] == ["0.04", "0.04"]
    assert found["a shard is away, if each is for a minute a month"] == ["0.02 % of the time", "2 % of the time"]


def test_numbers_keep_so_many_digits_and_all_before_the_point():
    assert [rounded(value) for value in (0.0123, 0.5, 1.0, 9.96, 12.4, 4567, 1e6)] == ["0.012", "0.5", "1", "10", "12", "4,600", "1,000,000"]


def test_a_table_is_markdown():
    assert table(("a", ""), [("1", ""), ("", "2")]) == "| a | |\n|---|---|\n| 1 | |\n| | 2 |"
