"""Steps over generated code alone: what is refused changes nothing, an episode has one writer, and what is known of episodes after a restart."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress

import grpc
import numpy as np
import pytest
from safetensors.numpy import load, save

from compliance.server.stock_client import Requests
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_server import ReplayServer, ServerConfig
from trajectory_play import TRAJECTORIES
from trajectory_rows import Chronicle, Players, columns_of

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
TIMEOUT = 30


def block(episode_id, steps, kinds, /, **changes) -> bytes:
    """Rows of an episode. `changes`: other columns, or None in place of one."""
    n = len(steps)
    columns = {"obs": np.zeros((n, 2), np.float32), "reward": np.ones(n, np.float32), "terminated": np.zeros(n, bool)}
    numbers = {"episode_id": np.full(n, episode_id), "step": np.array(steps), "step_kind": np.array(kinds, np.uint8)}
    kept = {name: column for name, column in (columns | {"truncated": np.zeros(n, bool)} | numbers | changes).items() if column is not None}
    return save(kept, {"batch_shape": f"[{n}]"})


@pytest.fixture
def stub(address):
    with grpc.insecure_channel(address) as channel:
        yield ReplayBufferServiceStub(channel)


@pytest.fixture
def steps(stub, table):
    """A table with the open episode 1 of two steps, and three that ended: 2 with its final observation, 3 without, and 4, whose one is to come."""
    create(stub, table)
    for rows in (block(1, [0, 1], [0, 0]), block(2, [0, 1], [5, 8]), block(3, [0], [2]), block(4, [0], [6])):
        stub.Add(pb.AddRequest(table=table, block=rows), timeout=TIMEOUT)
    return table


def create(stub, table, **options) -> None:
    settings = pb.Trajectories(ends=["terminated", "truncated"], final_fields=["obs"], reward="reward")
    stub.CreateTable(pb.CreateTableRequest(**{"table": table, "buffer_size": 50, "trajectories": settings} | options), timeout=TIMEOUT)


def listed(stub, table) -> list[pb.Episode]:
    return [episode for answer in stub.ListEpisodes(pb.ListEpisodesRequest(table=table), timeout=TIMEOUT) for episode in answer.episodes]


def known(stub, table):
    """What the server says of a table."""
    said = stub.Describe(pb.DescribeRequest(table=table), timeout=TIMEOUT)
    return said.size, said.write_count, said.insert_count, said.schema, said.trajectories, listed(stub, table)


def refusal(error) -> tuple[str, grpc.StatusCode]:
    return dict(error.value.trailing_metadata())["tdreplay-error"], error.value.code()


WRONG = {
    "a step that jumps": (block(1, [3], [0]), "episode 1: step 3 came after step 1; the next one must be 2"),
    "a step that comes again": (block(1, [1], [0]), "episode 1: step 1 came after step 1"),
    "a jump within a block": (block(9, [0, 2], [0, 0]), "episode 9: step 2 came after step 0"),
    "a step after a final observation": (block(2, [2], [0]), "episode 2: a step came after its end"),
    "a step after an end": (block(3, [1], [0]), "episode 3: a step came after its end"),
    "a step after an end within a block": (block(9, [0, 1], [1, 0]), "episode 9: a step came after its end"),
    "a step in place of a final observation": (block(4, [1], [0]), "episode 4: a step came after its end; its final observation was to come"),
    "a final observation of an open episode": (block(1, [2], [8]), "episode 1: a final observation came, and the episode has not ended"),
    "a final observation that was not announced": (block(3, [1], [8]), "episode 3"),
    "a second final observation": (block(2, [2], [8]), "episode 2"),
    "a final observation with another number": (block(4, [2], [8]), "episode 4: step 2 came after step 0"),
    "a negative episode": (block(-1, [0], [0]), r"episode_id \(-1\) must be from 0 up"),
    "a negative step": (block(9, [-1], [0]), r"step \(-1\)"),
    "a step that is too large": (block(9, [1 << 32], [0]), r"step \(4294967296\)"),
    "an unknown kind": (block(9, [0], [3]), r"step_kind \(3\) must be one of"),
    "a final observation that ends": (block(9, [0], [9]), r"step_kind \(9\) must be one of"),
}
MISSING = {
    "no episode_id": (block(9, [0], [0], episode_id=None), "field 'episode_id': expected I64"),
    "no step": (block(9, [0], [0], step=None), "field 'step': expected I64"),
    "no step_kind": (block(9, [0], [0], step_kind=None), "field 'step_kind': expected U8"),
    "an episode_id of 32 bits": (block(9, [0], [0], episode_id=np.zeros(1, np.int32)), "field 'episode_id': expected I64"),
    "no observation": (block(9, [0], [0], obs=None), "field 'obs' is missing"),
    "no end": (block(9, [0], [0], truncated=None), "field 'truncated' is missing"),
}


@pytest.mark.parametrize(("rows", "rule"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("good_before", [False, True])
def test_steps_that_do_not_go_on_where_their_episode_is_are_refused_and_change_nothing(stub, steps, rows, rule, good_before):
    before = known(stub, steps)
    if good_before:  # One row that would do, and then the others, in one block.
        parts = load(block(77, [0], [0])), load(rows)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        rows = save(joined, {"batch_shape": f"[{len(joined['step'])}]"})
    with pytest.raises(grpc.RpcError, match=rule) as raised:
        stub.Add(pb.AddRequest(table=steps, block=rows), timeout=TIMEOUT)
    assert refusal(raised) == ("EpisodeError", PRECONDITION)
    assert known(stub, steps) == before
    stub.Add(pb.AddRequest(table=steps, block=block(1, [2], [1])), timeout=TIMEOUT)
    assert listed(stub, steps)[0].ended == "terminated"


@pytest.mark.parametrize(("rows", "rule"), MISSING.values(), ids=MISSING)
@pytest.mark.parametrize("empty", [False, True])
def test_rows_without_the_columns_of_steps_are_refused_and_change_nothing(stub, table, request, rows, rule, empty):
    create(stub, table) if empty else request.getfixturevalue("steps")
    before = known(stub, table)
    with pytest.raises(grpc.RpcError, match=rule) as raised:
        stub.Add(pb.AddRequest(table=table, block=rows), timeout=TIMEOUT)
    assert refusal(raised) == ("SchemaError", INVALID)
    assert known(stub, table) == before


@contextmanager
def writing(stub, table, writer_id, rows, sequence=1):
    """A call over which a block of a writer came, and which is open until the end of the `with`."""
    requests = Requests(pb.AddBatchRequest(table=table, writer_id=writer_id, sequence=sequence, block=rows))
    call = stub.AddBatch(iter(requests), timeout=TIMEOUT)
    next(call)
    yield call
    requests.half_close()
    assert list(call) == []


def becomes(stub, table, expected) -> None:
    """Waits until the episodes ended so: the server hears of the end of a call a moment later than its client."""
    until = time.monotonic() + 10
    while [episode.ended for episode in listed(stub, table)] != expected:
        assert time.monotonic() < until, listed(stub, table)
        time.sleep(0.01)


def test_an_episode_has_one_writer_even_when_that_is_not_connected_any_more(stub, table):
    create(stub, table)
    with writing(stub, table, "one", block(1, [0], [0])), pytest.raises(grpc.RpcError, match="episode 1: another writer") as raised:
        stub.Add(pb.AddRequest(table=table, writer_id="two", sequence=1, block=block(1, [1], [0])), timeout=TIMEOUT)
    assert refusal(raised) == ("EpisodeError", PRECONDITION)
    becomes(stub, table, ["abandoned"])
    with pytest.raises(grpc.RpcError, match="episode 1: another writer"):
        stub.Add(pb.AddRequest(table=table, writer_id="two", sequence=1, block=block(1, [1], [0])), timeout=TIMEOUT)
    assert listed(stub, table)[0].steps == 1
    stub.Add(pb.AddRequest(table=table, writer_id="one", sequence=2, block=block(1, [1], [1])), timeout=TIMEOUT)
    assert [(episode.steps, episode.ended) for episode in listed(stub, table)] == [(2, "terminated")]


def test_an_episode_is_abandoned_once_the_last_call_of_its_writer_ended(stub, table):
    create(stub, table)
    with writing(stub, table, "one", block(1, [0], [0])):
        with writing(stub, table, "one", block(1, [1], [0]), 2):
            becomes(stub, table, [""])
        time.sleep(0.1)
        becomes(stub, table, [""])
    becomes(stub, table, ["abandoned"])
    with suppress(grpc.RpcError), writing(stub, table, "one", block(1, [2], [0]), 3) as call:
        becomes(stub, table, [""])
        call.cancel()
    becomes(stub, table, ["abandoned"])


def test_an_episode_comes_with_the_fields_that_are_named(stub, steps):
    (answer,) = stub.SampleEpisode(pb.SampleEpisodeRequest(table=steps, episode_id=2, fields=["step", "row_id"]), timeout=TIMEOUT)
    assert (answer.batch_rows, answer.has_final) == (2, True)
    assert {name: column.tolist() for name, column in load(answer.block).items()} == {"step": [0, 1], "row_id": [2, 3]}
    for request, name, status in (
        (pb.SampleEpisodeRequest(table=steps, episode_id=99), "EpisodeNotFoundError", grpc.StatusCode.NOT_FOUND),
        (pb.SampleEpisodeRequest(table=steps, episode_id=2, fields=["nope"]), "FieldNotFoundError", INVALID),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.SampleEpisode(request, timeout=TIMEOUT))
        assert refusal(raised) == (name, status)


def test_tables_without_trajectories_have_no_episodes(stub, table):
    stub.CreateTable(pb.CreateTableRequest(table=table, buffer_size=5), timeout=TIMEOUT)
    for call in (stub.ListEpisodes(pb.ListEpisodesRequest(table=table)), stub.SampleEpisode(pb.SampleEpisodeRequest(table=table, episode_id=1))):
        with pytest.raises(grpc.RpcError, match="no steps of episodes") as raised:
            list(call)
        assert refusal(raised) == ("NoTrajectoriesError", PRECONDITION)


def test_a_long_list_comes_in_parts_by_ascending_first_row(stub, table):
    create(stub, table, buffer_size=20_000)
    count = 10_000
    ids = np.random.default_rng(1).permutation(count)
    rows = block(0, np.zeros(count, np.int64), np.ones(count), episode_id=ids)
    stub.Add(pb.AddRequest(table=table, block=rows), timeout=TIMEOUT)
    answers = list(stub.ListEpisodes(pb.ListEpisodesRequest(table=table), timeout=TIMEOUT))
    assert [len(answer.episodes) for answer in answers] == [4096, 4096, count - 8192]
    assert [episode.episode_id for answer in answers for episode in answer.episodes] == ids.tolist()
    state = stub.Describe(pb.DescribeRequest(table=table), timeout=TIMEOUT).trajectories
    assert (state.episode_return.count, state.episode_length.max) == (100, 1.0)


def test_after_a_restart_returns_are_of_what_is_stored_and_open_episodes_are_abandoned_until_their_writer_is_back(tmp_path):
    chronicle, players, config = Chronicle(60), Players(4, 5), ServerConfig(address="127.0.0.1:0", data_dir=tmp_path)
    settings = pb.Trajectories(ends=list(TRAJECTORIES.ends), final_fields=list(TRAJECTORIES.final_fields), reward="reward")
    for turn in range(3):
        with ReplayServer(config) as server, grpc.insecure_channel(server.address) as channel:
            stub = ReplayBufferServiceStub(channel)
            create(stub, "steps", buffer_size=60, trajectories=settings)
            expected = [(one.episode_id, one.steps, one.episode_return, one.ended) for one in chronicle.episodes("abandoned")]
            assert [(one.episode_id, one.steps, one.episode_return, one.ended) for one in listed(stub, "steps")] == expected
            assert stub.Describe(pb.DescribeRequest(table="steps"), timeout=TIMEOUT).trajectories.episode_length.count == 0
            rows = players.rows(40)
            chronicle.insert(rows)
            columns = columns_of(rows)
            with writing(stub, "steps", "one", save(columns, {"batch_shape": "[40]"}), turn + 1):
                found = {one.episode_id: (one.steps, one.episode_return, one.ended) for one in listed(stub, "steps")}
                here = {one.episode_id: (one.steps, one.episode_return, one.ended) for one in chronicle.episodes("")}
                written = set(columns["episode_id"].tolist())
                away = {one: (*said[:2], said[2] or "abandoned") for one, said in here.items()}
                assert found == {one: here[one] if one in written or turn == 0 else away[one] for one in here}
            counted = stub.Describe(pb.DescribeRequest(table="steps"), timeout=TIMEOUT).trajectories
            assert counted.episode_length.count == chronicle.statistics()[1].count
            assert counted.episode_return.mean == pytest.approx(chronicle.statistics()[0].mean)
        chronicle.restart()
