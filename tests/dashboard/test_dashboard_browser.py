"""The page in a real browser: each number that it shows is the buffer's, and it is used with the keyboard, in the dark, and on a phone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from browsers import Browser, browser
from dashboards import HOSTILE, LENGTHS, SIDE, dashboard, fill_episodes, fill_odd, frame
from selenium.webdriver.common.keys import Keys

from children import free_port, server_process
from conftest import rows
from tdreplay_client import RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

FOCUSABLE = "a[href], button:not(:disabled), select, input, [tabindex='0']"

PIXELS = """
const done = arguments[1], image = document.querySelector(arguments[0]);
const read = () => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  done([canvas.height, canvas.width, ...context.getImageData(0, 0, canvas.width, canvas.height).data]);
};
image.loading = "eager";
if (image.complete && image.naturalWidth) read();
else image.addEventListener("load", read, { once: true });
"""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


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
def url(server, window, episodes, odd) -> Iterator[str]:
    with dashboard(server) as page:
        yield page.url


@pytest.fixture(autouse=True)
def silent(window) -> Iterator[None]:
    """No page of a test complains, or loads anything from elsewhere."""
    window.driver.get_log("browser")
    yield
    assert [entry["message"] for entry in window.driver.get_log("browser") if "api/tables/gone" not in entry["message"]] == []
    origins = window.run("return performance.getEntriesByType('resource').map((one) => new URL(one.name).origin)")
    assert set(origins) <= {window.run("return location.origin")}


def pixels(window: Browser, selector: str) -> np.ndarray:
    height, width, *data = window.driver.execute_async_script(PIXELS, selector)
    return np.array(data, np.uint8).reshape(height, width, 4)


def test_the_overview_shows_the_numbers_of_each_table(window, url, episodes, odd):
    window.open(url)
    for name, buffer in (("pixels", episodes), ("odd", odd)):
        card, described = f"[data-table={name}]", buffer.describe()
        assert window.data(f"{card} [data-size]", "data-size") == [str(described.size)]
        share = f"{100 * described.size // described.buffer_size} %"
        assert window.texts(f"{card} [data-size]") == [f"{described.size:,} of {described.buffer_size:,} rows ({share})"]
        assert window.one(f"{card} [role=meter]").get_attribute("aria-valuenow") == f"{100 * described.size / described.buffer_size:.0f}"
        assert str(described.config.sampler) in window.texts(f"{card} .chip")
        assert window.one(f"{card} .chart svg").get_attribute("aria-label").startswith("Rates over the last minutes. Now: inserted ")
    figures = window.figures()
    assert (figures["tables"], figures["rows"]) == (
        (2, "2"),
        (odd.state().size + episodes.state().size, f"{odd.state().size + episodes.state().size}"),
    )


def test_rates_follow_the_buffer_without_a_reload(window, url, server):
    with RemoteReplayBuffer(server, table="live", buffer_size=20_000, rate_limiter={"name": "min_size", "min_size": 10}, timeout=10) as buffer:
        buffer.add_batch(rows(1000))
        buffer.sample_batch(500)
        before = buffer.describe()
        window.open(f"{url}#/table/live")
        window.run("window.kept = document.querySelector('h1')")
        window.one(".tabs a").send_keys("")
        focused = window.run("return document.activeElement.textContent")
        buffer.add_batch(rows(11_345, 1000))
        window.until(lambda: window.figures()["size"] == (12_345, "12,345"))
        shown, after = window.figures(), buffer.describe()
        assert shown["insert_count"] == (12_345, "12,345")
        assert shown["sample_count"] == (before.sample_count, "500")
        assert shown["insert_rate"][0] >= after.insert_rate * 0.99 > 0
        assert shown["replay_ratio"][0] == pytest.approx(shown["sample_rate"][0] / shown["insert_rate"][0])
        assert window.run("return window.kept.isConnected && document.activeElement.textContent") == focused
        buffer.drop()


def test_histograms_and_settings_are_those_of_the_buffer(window, url, episodes):
    window.open(f"{url}#/table/pixels")
    steps, described = episodes.sample_all(), episodes.describe()
    expected = {
        "reward": steps["reward"].double(),
        "action": steps["action"].double(),
        "priority": steps["row_id"].double() / 4,
        "age": described.write_count - 1 - steps["row_id"].double(),
        "episode_length": np.array(LENGTHS, np.float64),
        "episode_return": np.array([episode.episode_return for episode in episodes.episodes()[: len(LENGTHS)]]),
    }
    for name, numbers in expected.items():
        drawn = window.one(f"[data-field='{name}']")
        figures = {key: float(drawn.get_attribute(f"data-{key}")) for key in ("count", "sum", "mean", "min", "max")}
        assert figures == pytest.approx(
            {
                "count": len(numbers),
                "sum": float(numbers.sum()),
                "mean": float(numbers.mean()),
                "min": float(numbers.min()),
                "max": float(numbers.max()),
            }
        ), name
        assert f"from {figures['min']:g} to" in drawn.text or figures["min"] % 1
    assert window.one("[data-sampled]").text.startswith(f"Of {len(steps)} rows, drawn at random from the {described.size} that are stored")
    shown = window.figures()
    assert {key: shown[key][0] for key in ("episodes", "open_episodes", "steps", "transitions")} == {
        key: getattr(described.trajectories, key) for key in ("episodes", "open_episodes", "steps", "transitions")
    }
    assert shown["episode_return"][0] == pytest.approx(described.trajectories.episode_return.mean)
    facts = dict(zip(window.texts(".facts dt"), window.texts(".facts dd"), strict=True))
    assert (facts["capacity"], facts["generation"], facts["durability"]) == ("200 rows", described.generation_id, described.durability)
    assert facts["priorities"] == f"{described.updated} updated, {described.stale} stale"
    schema = dict(zip(window.texts("tbody tr td:first-child"), window.texts("tbody tr td:nth-child(2)"), strict=True))
    assert schema["obs"] == f"U8 [{SIDE}, {SIDE}, 3]"
    assert schema["info.q"] == "F64 [40]"


def test_rows_are_listed_with_their_values_and_images(window, url, odd):
    window.open(f"{url}#/table/odd/rows?start=25")
    assert window.data("[data-row]", "data-row") == [str(row) for row in range(25, 7, -1)]
    known = odd.sample_by_index_fields([25], ["reward", "half"])[0]
    card = "[data-row='25']"
    values = dict(zip(window.data(f"{card} dd", "data-field"), window.texts(f"{card} dd"), strict=True))
    assert float(values["reward"]) == known["reward"].item()
    assert float(values["half"]) == pytest.approx(known["half"].item())
    assert (values[HOSTILE], values["done"], values["wave"]) == (str(2**60 + 25), "false", "25-25i")
    assert values["three"].startswith("[25, 26, 27]")
    assert values["large"] == "F64 [600000], 4.8 MB: too large to show"
    assert HOSTILE in window.texts(f"{card} dt")
    assert window.run("return document.scripts.length") == 1
    assert np.array_equal(pixels(window, f"{card} img[data-field='picture.hwc']")[..., :3], frame(25))
    assert pixels(window, f"{card} img[data-field='picture.stack']").shape[:2] == (SIDE, 5 * SIDE + 8)


def test_a_long_vector_is_unfolded_with_the_keyboard_and_stays_so(window, url):
    window.open(f"{url}#/table/odd/rows?start=25")
    button = window.one("[data-row='25'] [data-field=vector] button")
    button.send_keys(Keys.ENTER)
    window.until(lambda: ", 1024" in window.one("[data-row='25'] [data-field=vector] .numbers").text)
    window.one("[data-row='25'] [data-field=vector] .numbers button").send_keys(Keys.ENTER)
    window.until(lambda: window.one("[data-row='25'] [data-field=vector] .numbers").text.endswith("1524"))
    numbers = window.one("[data-row='25'] [data-field=vector] .numbers").text.replace("\n", ", ").split(", ")
    assert [int(number) for number in numbers] == [25 + number for number in range(1500)]
    scrolled = window.run("scrollTo(0, 300); return scrollY")
    window.refreshed()
    assert button.get_attribute("aria-expanded") == "true"
    assert window.run("return scrollY") == scrolled


def test_pages_are_turned_with_the_keyboard(window, url):
    window.open(f"{url}#/table/odd/rows")
    window.one("[data-turn=next]").send_keys(Keys.ENTER)
    window.until(lambda: window.data("[data-row]", "data-row") == [str(row) for row in range(17, 7, -1)])
    assert not window.one("[data-turn=next]").is_enabled()
    window.one("#order").send_keys("oldest")
    window.until(lambda: window.data("[data-row]", "data-row") == [str(row) for row in range(8, 28)])
    window.one("#go").send_keys("31" + Keys.ENTER)
    window.until(lambda: window.data("[data-row]", "data-row") == [str(row) for row in range(31, 38)])


def test_episodes_are_listed_as_the_buffer_lists_them(window, url, episodes):
    window.open(f"{url}#/table/pixels/episodes")
    known = episodes.episodes()[::-1]
    assert window.data("[data-episode]", "data-episode") == [str(episode.episode_id) for episode in known]
    assert window.texts("tbody td:nth-child(2)") == [str(episode.steps) for episode in known]
    assert [float(value) for value in window.data("tbody [data-value]", "data-value")] == [episode.episode_return for episode in known]
    assert window.texts("tbody td:nth-child(5)") == [episode.ended or "open" for episode in known]


def test_an_episode_is_played_with_the_keyboard(window, url, episodes):
    episode = episodes.episodes()[1]
    steps = episodes.episode(episode.episode_id)
    window.open(f"{url}#/table/pixels/episode/{episode.episode_id}")
    figures = window.figures()
    assert figures["steps"][0] == episode.steps
    assert figures["return"][0] == pytest.approx(episode.episode_return, abs=1e-5)
    assert figures["ended"][0] == "truncated"
    assert [float(value) for value in window.texts(".steps td[data-field=reward]")] == pytest.approx(steps["reward"].tolist())
    assert [int(value) for value in window.texts(".steps td[data-field=action]")] == steps["action"].tolist()
    for key, step in ((Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 2), (Keys.END, 9), (Keys.ARROW_LEFT, 8), (Keys.HOME, 0)):
        window.press(key)
        assert window.data("[data-step]", "data-step") == [str(step)]
        wanted = steps["obs"][step] if step < 9 else steps["next", "obs"][-1]
        assert np.array_equal(pixels(window, ".screen img")[..., :3], wanted.numpy()), step
    window.press(" ")
    window.until(lambda: window.data("[data-step]", "data-step") == ["9"])
    window.until(lambda: window.one("#play").text.endswith("Play"))


def test_everything_is_reached_with_tab_and_has_a_name(window, url, episodes):
    window.open(f"{url}#/table/pixels/episode/{episodes.episodes()[0].episode_id}")
    window.run("document.activeElement.blur()")
    seen = []
    for _ in range(60):
        window.press(Keys.TAB)
        name, outline, place = window.run(
            "const one = document.activeElement; return [one.ariaLabel || one.labels?.[0]?.textContent || one.textContent,"
            " getComputedStyle(one).outlineStyle, [...document.querySelectorAll('*')].indexOf(one)]"
        )
        if place in seen or window.run("return document.activeElement === document.body"):
            break
        assert name.strip()
        assert outline != "none", name
        seen.append(place)
    focusable = window.run(f"return [...document.querySelectorAll({FOCUSABLE!r})].filter((one) => one.checkVisibility()).length")
    assert len(seen) == focusable
    assert window.run("return [...document.querySelectorAll('h1, h2, h3')].length") >= 4


def test_light_and_dark_follow_the_system_and_the_button(window, url):
    dark = "const [red] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g); return red < 128"
    for scheme, button in (("light", "Dark"), ("dark", "Light")):
        window.open(url, scheme=scheme)
        assert (window.run(dark), window.one("#theme").text) == (scheme == "dark", button)
    window.one("#theme").send_keys(Keys.ENTER)
    assert window.run(dark) is False
    window.open(url, scheme="dark")
    assert window.run(dark) is False  # It is kept.
    window.run("localStorage.clear()")


def test_no_page_is_wider_than_a_phone(window, url, episodes):
    episode = episodes.episodes()[2].episode_id
    for path in (
        "",
        "#/table/pixels",
        "#/table/odd",
        "#/table/odd/rows",
        "#/table/pixels/rows",
        "#/table/pixels/episodes",
        f"#/table/pixels/episode/{episode}",
    ):
        window.open(f"{url}{path}", width=360, height=740)
        assert window.run("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360], path


def test_what_is_wrong_is_said_in_words(window, url):
    window.driver.get("about:blank")
    window.driver.get(f"{url}#/table/gone")
    window.until(lambda: window.one("#trouble").text == "There is no such table. It may have been dropped.")


def test_a_page_survives_a_restart_of_the_server(window):
    place = f"127.0.0.1:{free_port()}"
    with dashboard(place, timeout=2) as page:
        with server_process(ServerConfig(address=place)) as server:
            fill(place, 3)
            window.open(page.url)
            window.until(lambda: window.data("[data-size]", "data-size") == ["3"])
            server.child.kill()
        window.until(lambda: window.one("#trouble").text.startswith("The server is away"))
        with server_process(ServerConfig(address=place)):
            fill(place, 4)
            window.until(lambda: window.data("[data-size]", "data-size") == ["4"] and not window.one("#trouble").is_displayed())


def fill(address: str, size: int) -> None:
    with RemoteReplayBuffer(address, table="first", buffer_size=5, timeout=20) as buffer:
        buffer.add_batch(rows(size))
