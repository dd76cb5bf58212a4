"""What the dashboard answers is what the buffer says: states, histograms, rows, values, images, episodes. Nothing in the server changes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from dashboards import HOSTILE, LENGTHS, SIDE, Page, dashboard, fill_episodes, fill_odd, frame, until

from tdreplay_client import RemoteReplayBuffer
from tdreplay_client.dashboard.limits import HISTOGRAMS, PAGE_ROWS, PAGE_VALUES, VALUE_BYTES
from tdreplay_server import ReplayServer, ServerConfig


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ReplayServer(ServerConfig(address="127.0.0.1:0")) as server:
        yield server.address


@pytest.fixture(scope="module")
def episodes(server) -> Iterator[RemoteReplayBuffer]:
    with fill_episodes(server) as buffer:
        yield buffer


@pytest.fixture(scope="module")
def odd(server) -> Iterator[RemoteReplayBuffer]:
    with fill_odd(server) as buffer:
        yield buffer


@pytest.fixture(scope="module")
def page(server, episodes, odd) -> Iterator[Page]:
    with dashboard(server) as page:
        yield page


def test_the_overview_says_what_each_table_says(page, episodes, odd):
    shown = page.read("overview")
    assert (shown["error"], shown["more_tables"], shown["server"]["refused"]) == ("", 0, "")
    assert [table["table"] for table in shown["tables"]] == ["odd", "pixels"]
    for table, buffer in zip(shown["tables"], (odd, episodes), strict=True):
        described = json.loads(json.dumps(buffer.describe().to_json()))
        rates = {"insert_rate", "sample_rate"}  # They fall while nothing comes.
        assert {key: value for key, value in table.items() if key in described.keys() - rates} == {
            key: value for key, value in described.items() if key not in rates
        }
        assert set(table["points"]["size"]) == {buffer.state().size}


def test_rates_and_the_replay_ratio_are_those_of_the_server(page, odd):
    for _ in range(4):
        odd.sample_batch(32)
    before = odd.describe()
    until(lambda: page.read("tables/odd")["table"]["sample_count"] == before.sample_count)
    shown, after = page.read("tables/odd")["table"], odd.describe()
    assert 0.5 < shown["sample_rate"] / after.sample_rate < 2  # Of the last ten seconds, a moment ago and now.
    if shown["insert_rate"]:
        assert shown["replay_ratio"] == shown["sample_rate"] / shown["insert_rate"]


def test_points_come_from_a_moment_on(page):
    times = until(lambda: len(found := page.read("tables/odd")["table"]["points"]["time"]) >= 3 and found)
    assert np.all(np.diff(times) > 0)
    later = page.read("tables/odd", since=times[1])["table"]["points"]["time"]
    assert later[: len(times) - 2] == times[2:]


def test_histograms_of_all_rows_are_those_of_the_buffer(page, odd):
    shown = page.read("tables/odd/histograms")
    rows = odd.sample_by_index_fields(range(30), ["reward", "half", "done", HOSTILE, "row_id"])
    assert (shown["sampled"], shown["stored"], sorted(shown["row_ids"])) == (30, 30, list(range(8, 38)))
    found = {entry["field"]: entry for entry in shown["fields"]}
    assert list(found) == ["reward", HOSTILE, "done", "half", "age"]
    assert found["age"]["counts"] == [1] * 30
    for name in ("reward", HOSTILE, "done", "half"):
        numbers = rows[name].double().numpy()
        finite = numbers[np.isfinite(numbers)]
        entry = found[name]
        assert (entry["count"], entry["not_finite"]) == (30, int(name == "reward"))
        assert [entry[key] for key in ("min", "max", "sum", "mean", "std")] == pytest.approx(
            [finite.min(), finite.max(), finite.sum(), finite.mean(), finite.std()]
        )
        assert sum(entry["counts"]) == len(finite)
        assert entry["counts"] == np.histogram(finite, entry["edges"])[0].tolist()


def test_histograms_of_steps_leave_out_final_observations_and_have_priorities(page, episodes):
    shown = page.read("tables/pixels/histograms")
    steps = episodes.sample_all()
    assert (shown["sampled"], shown["left_out"]) == (len(steps), len(LENGTHS))
    found = {entry["field"]: entry for entry in shown["fields"]}
    assert next(iter(found)) == "reward"
    assert found["reward"]["sum"] == pytest.approx(steps["reward"].double().sum().item())
    assert found["priority"]["sum"] == pytest.approx(steps["row_id"].double().sum().item() / 4)
    assert found["priority"]["max"] == steps["row_id"].max().item() / 4
    ended = [episode for episode in episodes.episodes() if episode.ended in ("terminated", "truncated")]
    of_episodes = {entry["field"]: entry for entry in shown["of_episodes"]["fields"]}
    assert of_episodes["episode_length"]["sum"] == sum(LENGTHS) == sum(episode.steps for episode in ended)
    assert of_episodes["episode_return"]["sum"] == pytest.approx(sum(episode.episode_return for episode in ended))


def test_a_sample_is_as_large_as_asked_and_bounded(page):
    shown = page.read("tables/odd/histograms", rows=7)
    assert (shown["sampled"], len(set(shown["row_ids"]))) == (7, 7)
    assert page.refusal("tables/odd/histograms", rows=2001)[0] == 400
    assert page.refusal("tables/odd/histograms", rows="many") == (400, "rows ('many') must be a number")


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_pages_bring_each_row_once_in_order(page, odd, order):
    ids, start, sign = [], None, -1 if order == "newest" else 1
    for _ in range(5):
        shown = page.read("tables/odd/rows", order=order, limit=8, **({} if start is None else {"start": start}))
        ids += [row["row_id"] for row in shown["rows"]]
        start = ids[-1] + sign
        if not shown["oldest"] <= start < shown["end"]:
            break
    assert ids == sorted(range(8, 38), reverse=order == "newest")
    assert page.refusal("tables/odd/rows", limit=PAGE_ROWS + 1)[0] == 400


def test_a_row_has_the_values_of_the_buffer(page, odd):
    shown = page.read("tables/odd/rows", start=25, limit=1)["rows"][0]
    assert (shown["row_id"], shown["slot"]) == (25, 25)
    half = odd.sample_by_index_fields([25], ["half"])["half"].item()
    assert shown["values"] == {
        HOSTILE: str(2**60 + 25),
        "reward": 25 / 8,
        "done": False,
        "half": pytest.approx(half),
        "three": [25, 26, 27],
        "wave": "25-25i",
    }
    assert page.read("tables/odd/rows", start=20, limit=1)["rows"][0]["values"]["reward"] == "NaN"


def test_a_step_says_which_it_is_and_its_priority(page):
    shown = {row["row_id"]: row for row in page.read("tables/pixels/rows", limit=50, order="oldest")["rows"]}
    assert [shown[row]["step"] for row in range(6)] == [0, 1, 2, 3, 4, 5]
    assert [shown[row]["step_kind"] for row in (3, 4, 5)] == [0, 5, 8]
    assert [shown[row]["priority"] for row in (0, 1, 30)] == [0, 0.25, 7.5]
    assert len({shown[row]["episode_id"] for row in range(6)}) == 1


def test_a_value_comes_in_parts(page):
    first = page.read("tables/odd/value", row=12, field="vector")
    rest = page.read("tables/odd/value", row=12, field="vector", start=PAGE_VALUES)
    assert (first["total"], len(first["values"])) == (1500, PAGE_VALUES)
    assert first["values"] + rest["values"] == [12 + number for number in range(1500)]


def test_what_is_too_large_or_not_there_is_refused(page):
    assert VALUE_BYTES < 600_000 * 8
    status, words = page.refusal("tables/odd/value", row=12, field="large")
    assert (status, str(VALUE_BYTES) in words) == (400, True)
    assert page.refusal("tables/odd/value", row=2, field="vector") == (404, "This row is not stored any more.")
    assert page.refusal("tables/odd/value", row=12, field="nothing")[0] == 400
    assert page.refusal("tables/nothing")[0] == 404
    assert page.refusal("tables/nothing/rows") == (404, "There is no such table. It may have been dropped.")
    assert page.refusal("tables/odd/episodes") == (404, "The rows of this table are no steps of episodes.")
    assert page.refusal("tables/pixels/episodes/77") == (404, "No step of this episode is stored, or none any more.")
    for number in ("9" * 30, "9" * 5000, "-1", "x"):
        assert page.refusal(f"tables/pixels/episodes/{number}")[0] == 400


def test_images_are_the_pixels_of_the_rows(page):
    image = frame(25)
    assert np.array_equal(page.picture("odd", row=25, field="picture.hwc"), image)
    assert np.array_equal(page.picture("odd", row=25, field="picture.chw"), image)
    assert np.array_equal(page.picture("odd", row=25, field="picture.rgba"), np.concatenate([image, image[..., :1]], 2))
    assert np.array_equal(page.picture("odd", row=25, field="picture.unit"), image[..., 1:2])
    assert np.array_equal(page.picture("odd", row=25, field="picture.wide"), image[..., 1:2])  # From the least to the greatest.
    strip = page.picture("odd", row=25, field="picture.stack")
    assert strip.shape == (SIDE, 5 * SIDE + 4 * 2, 1)
    for number in range(5):
        assert np.array_equal(strip[:, number * (SIDE + 2) : number * (SIDE + 2) + SIDE, 0], image[..., 0] + number)
    assert page.picture("odd", row=25, field="picture.chw", layout="thw").shape == (SIDE, 3 * SIDE + 2 * 2, 1)
    assert page.refusal("tables/odd/image", row=25, field="vector")[0] == 400
    assert page.refusal("tables/odd/image", row=25, field="picture.hwc", layout="thwc")[0] == 400


def test_fields_say_which_images_they_can_be(page):
    fields = {field["name"]: field for field in page.read("tables/odd")["table"]["fields"]}
    layouts = {name.removeprefix("picture."): field["layouts"] for name, field in fields.items() if field["layouts"]}
    assert layouts == {"hwc": ["hwc"], "chw": ["chw", "thw"], "rgba": ["hwc"], "unit": ["hw"], "wide": ["hw"], "stack": ["thw"]}
    assert [name for name, field in fields.items() if field["too_large"]] == ["large"]


def test_the_list_of_episodes_is_that_of_the_buffer(page, episodes):
    shown = page.read("tables/pixels/episodes")
    known = [{**episode.to_json(), "episode_id": str(episode.episode_id)} for episode in reversed(episodes.episodes())]
    assert (shown["listed"], shown["episodes"]) == (4, known)
    assert page.read("tables/pixels/episodes", offset=1, limit=2)["episodes"] == known[1:3]


def test_the_steps_of_an_episode_are_those_of_the_buffer(page, episodes):
    for episode in episodes.episodes():
        shown, steps = page.read(f"tables/pixels/episodes/{episode.episode_id}"), episodes.episode(episode.episode_id)
        assert shown["row_id"] == steps["row_id"].tolist()
        assert shown["step"] == steps["step"].tolist() == list(range(episode.steps))
        assert [values["reward"] for values in shown["values"]] == pytest.approx(steps["reward"].tolist())
        assert [values["action"] for values in shown["values"]] == steps["action"].tolist()
        assert shown["ended"] == (episode.ended if episode.ended != "abandoned" else "")
        final = None if not episode.has_final else shown["row_id"][-1] + 1
        assert shown["final_row_id"] == final
        if final is not None:
            assert np.array_equal(page.picture("pixels", row=final, field="obs"), steps["next", "obs"][-1].numpy())


def test_many_fields_get_no_more_histograms_than_there_are_places(server, page):
    with RemoteReplayBuffer(server, table="many", buffer_size=10, timeout=10) as buffer:
        buffer.add({f"field-{number:02}": float(number) for number in range(HISTOGRAMS + 5)})
        shown = page.read("tables/many/histograms")
        assert (len(shown["fields"]), shown["more_fields"]) == (HISTOGRAMS + 1, 5)
        buffer.drop()
    until(lambda: page.refusal("tables/many")[0] == 404)


def test_an_empty_table_is_shown_empty(server, page):
    with RemoteReplayBuffer(server, table="empty", buffer_size=10, timeout=10) as buffer:
        assert page.read("tables/empty/rows")["rows"] == []
        assert page.read("tables/empty/histograms")["sampled"] == 0
        assert page.read("tables/empty")["table"]["fields"] == []
        buffer.drop()


def test_looking_changes_nothing(page, episodes, odd):
    before = [buffer.describe() for buffer in (episodes, odd)]
    for table in ("pixels", "odd"):
        for path in ("", "/histograms", "/rows"):
            page.read(f"tables/{table}{path}")
    after = [buffer.describe() for buffer in (episodes, odd)]
    for one, other in zip(before, after, strict=True):
        assert (one.sample_count, one.insert_count, one.generation_id, one.leased) == (
            other.sample_count,
            other.insert_count,
            other.generation_id,
            other.leased,
        )


def test_rows_that_leave_a_queue_are_not_taken_by_looking(server, page):
    with RemoteReplayBuffer(
        server, table="queue", buffer_size=8, sampler="fifo", max_times_sampled=1, rate_limiter={"name": "queue", "max_size": 8}
    ) as buffer:
        for number in range(8):
            buffer.add({"number": number})
        assert [row["values"]["number"] for row in page.read("tables/queue/rows", order="oldest")["rows"]] == list(range(8))
        assert page.read("tables/queue/histograms")["sampled"] == 8
        assert buffer.sample_batch(8)["number"].tolist() == list(range(8))
        assert page.read("tables/queue/rows")["rows"] == []
        buffer.drop()
