"""The dashboard, the alerts and docs/metrics.md speak of the metrics that a server has, and the docs of all of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from conftest import rows
from tdreplay.errors import ReplayError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import Prioritized, RemoteReplayBuffer
from tdreplay_server import ReplayServer, ServerConfig

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "docker/grafana/dashboards/tdreplay.json").read_text())
ALERTS = (ROOT / "docker/prometheus/alerts.yml").read_text()
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
RULES = re.findall(r"^ +expr: (.+)$", ALERTS, re.MULTILINE)
PROMETHEUS = os.environ.get("TDREPLAY_PROMETHEUS") or shutil.which("prometheus")
TARGETS = {"job", "instance"}
"""Labels that Prometheus gives to whatever it scrapes."""
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "bool", "offset"}
LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
SELECTOR = re.compile(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\b(?!\s*\()\s*(\{[^}]*\})?")
MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
RANGE = re.compile(r"\[[^\]]*\]")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplayServer]:
    """It has served each kind of call once."""
    directory = tmp_path_factory.mktemp("data")
    where = {"address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0", "data_dir": directory, "cluster": "replay", "shard": 0}
    config = ServerConfig(**where, durability="interval:0.05", max_batch_rows=2000)
    with ReplayServer(config) as running:
        use(running, "first")
        yield running


def use(server: ReplayServer, checkpoint: str) -> None:
    with RemoteReplayBuffer(server.address, buffer_size=1000, sampler=Prioritized()) as buffer:
        buffer.add_batch(rows(600))
        buffer.add_batch(rows(600))
        batch = buffer.sample_batch(8)
        buffer.update_priorities(batch["row_id"], batch["priority"] + 1)
        list(buffer.create_epoch_iterator(500))
        buffer.checkpoint(checkpoint)
        with suppress(ReplayError):
            buffer.sample_batch(2001)
    with grpc.insecure_channel(server.address) as channel:
        ReplayBufferServiceStub(channel).ListTables(pb.ListTablesRequest(), timeout=10)


def families_of(server: ReplayServer) -> list[Metric]:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as answer:
        return list(text_string_to_metric_families(answer.read().decode()))


@pytest.fixture(scope="module")
def series(server) -> Mapping[str, list[Mapping[str, str]]]:
    """The name of each sample -> the labels of its series."""
    deadline = time.monotonic() + 10
    while True:  # The rows reach the disk a moment later.
        found: dict[str, list[Mapping[str, str]]] = {"up": [{}]}
        for family in families_of(server):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.labels)
        if "tdreplay_table_flush_seconds_count" in found:
            return found
        assert time.monotonic() < deadline, "no flush"


def filled(query: str) -> str:
    """A query with what Grafana puts in place of its variables."""
    return query.replace("$__rate_interval", "30s").replace("$table", ".*")


def matchers(text: str) -> list[tuple[str, str, str]]:
    """What stands between the braces of a selector."""
    inner = text.strip().removeprefix("{").removesuffix("}")
    found = [match.groups() for match in MATCHER.finditer(inner)]
    assert not MATCHER.sub("", inner).strip(), f"{text} cannot be read"
    return found


def selects(labels: Mapping[str, str], name: str, operator: str, value: str) -> bool:
    there = labels.get(name, "")
    equal = re.fullmatch(value, there) is not None if "~" in operator else there == value
    return equal is not operator.startswith("!")


def problems(query: str, series: Mapping[str, list[Mapping[str, str]]]) -> list[str]:
    """What in a query a server does not have: metrics, labels, and values of labels."""
    text = RANGE.sub("", filled(query))
    listed = {name.strip() for names in LISTS.findall(text) for name in names.split(",") if name.strip()}
    bare = LISTS.sub(" ", text)
    found, known = [], set(TARGETS)
    for name, braces in SELECTOR.findall(bare):
        if name in WORDS:
            continue
        conditions = [condition for condition in matchers(braces) if condition[0] not in TARGETS] if braces else []
        labels = {label for each in series.get(name, ()) for label in each}
        known |= labels
        if name not in series:
            found.append(f"there is no metric {name}")
        found += [f"{name} has no label {label}" for label, _, _ in conditions if name in series and label not in labels]
        if name in series and not any(all(selects(each, *condition) for condition in conditions) for each in series[name]):
            found.append(f"no series of {name} has {braces}")
    return found + [f"there is no label {label} to group by" for label in sorted(listed - known)]


@pytest.mark.parametrize("query", QUERIES + RULES)
def test_each_query_asks_for_metrics_and_labels_that_are_there(series, query):
    assert SELECTOR.search(query)
    assert problems(query, series) == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("rate(tdreplay_table_rowz[5m])", "there is no metric tdreplay_table_rowz"),
        ("sum by (tabel) (tdreplay_table_rows)", "there is no label tabel to group by"),
        ('tdreplay_table_rows{tabel="a"}', "tdreplay_table_rows has no label tabel"),
        ('rate(grpc_server_handled_total{grpc_code="Ok"}[5m])', 'no series of grpc_server_handled_total has {grpc_code="Ok"}'),
        ("tdreplay_table_rows / on (table) tdreplay_nothing", "there is no metric tdreplay_nothing"),
    ],
)
def test_a_query_that_is_wrong_is_found_out(series, query, problem):
    assert problem in problems(query, series)


def test_the_docs_explain_each_metric_and_no_other(server, series):
    text = (ROOT / "docs/metrics.md").read_text()
    explained = set(re.findall(r"^\| `([a-z0-9_]+)(?:\{[a-z_, ]*\})?` \|", text, re.MULTILINE))
    there = {family.name + ("_total" if family.type == "counter" else "") for family in families_of(server)}
    assert explained == there


def test_the_docs_explain_each_alert_and_no_other():
    text = (ROOT / "docs/metrics.md").read_text()
    assert set(re.findall(r"^\| `(Replay[A-Za-z]+)` \|", text, re.MULTILINE)) == set(re.findall(r"alert: (\w+)", ALERTS))
    assert len(RULES) == ALERTS.count("- alert:")


def test_the_dashboard_is_one_that_grafana_provisions():
    """Each panel has a place of its own, and asks the data source that is provisioned."""
    provisioned = (ROOT / "docker/grafana/provisioning/datasources/prometheus.yaml").read_text()
    places = []
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
        places += [(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]
    assert len(places) == len(set(places))
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["description"]
        assert panel["type"] in ("timeseries", "stat")
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"]["type"] == "prometheus"
            assert f"uid: {asked['datasource']['uid']}\n" in provisioned


@contextmanager
def prometheus(server: ReplayServer, directory: Path) -> Iterator[str]:
    """A Prometheus that scrapes a server five times a second, with the alerts of the stack. Gives its address."""
    rules, config, log = directory / "alerts.yml", directory / "prometheus.yml", directory / "log"
    rules.write_text(ALERTS)
    target = f'  - job_name: tdreplay\n    static_configs:\n      - targets: ["{server.metrics_address}"]\n'
    config.write_text(f"global:\n  scrape_interval: 200ms\n  evaluation_interval: 500ms\nrule_files: [{rules}]\nscrape_configs:\n{target}")
    options = [f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}", "--web.listen-address=127.0.0.1:0"]
    with log.open("w") as output, subprocess.Popen([str(PROMETHEUS), *options], stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            deadline = time.monotonic() + 30
            while not (found := re.search(r'msg="?Listening on"? address=(\S+)', log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
            yield found.group(1)
        finally:
            process.terminate()


def asked(address: str, path: str, **arguments: str) -> Any:
    with urllib.request.urlopen(f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}", timeout=10) as answer:
        return json.load(answer)["data"]


@pytest.mark.skipif(PROMETHEUS is None, reason="needs Prometheus: apt-get install prometheus, or TDREPLAY_PROMETHEUS=PATH")
def test_a_prometheus_finds_data_for_each_panel_and_evaluates_each_alert(server, tmp_path):
    with prometheus(server, tmp_path) as address:
        deadline, missing = time.monotonic() + 60, list(QUERIES)
        for number in range(1000):
            use(server, f"again-{number}")
            missing = [query for query in missing if not asked(address, "query", query=filled(query))["result"]]
            if not missing or time.monotonic() > deadline:
                break
        assert missing == []
        rules = [rule for group in asked(address, "rules")["groups"] for rule in group["rules"]]
        assert len(rules) == len(RULES)
        assert {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"} == {}
        assert [alert["labels"]["alertname"] for alert in asked(address, "alerts")["alerts"] if alert["state"] == "firing"] == []
