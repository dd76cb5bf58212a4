"""What the server says of itself to Prometheus."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
import trustme
from prometheus_client.parser import text_string_to_metric_families

from conftest import rows
from tdreplay.errors import ReplayError, SlotIndexError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_client import Prioritized, RemoteReplayBuffer, SamplesPerInsert
from tdreplay_server import ReplayServer, ServerConfig

LOCAL = "127.0.0.1:0"
ROW_BYTES = 33
"""Of `rows`."""
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def page(address: str, timeout: float = 10) -> str:
    """What /metrics answers."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=timeout) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return answer.read().decode()


def scraped(server: ReplayServer) -> Samples:
    """Every sample of a server: its name and labels -> its value."""
    families = text_string_to_metric_families(page(server.metrics_address))
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of that name that have these labels."""
    found = [number for (found, has), number in samples.items() if found == name and labels.items() <= dict(has).items()]
    assert found, f"no {name} with {labels}"
    return sum(found)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplayServer]:
    config = ServerConfig(address=LOCAL, metrics_address=LOCAL, data_dir=tmp_path_factory.mktemp("data"), durability="interval:0.05", max_streams=2)
    with ReplayServer(config) as running:
        yield running


def growth(before: Samples, after: Samples, name: str, **labels: str) -> float:
    """By how much a metric grew."""
    return value(after, name, **labels) - value(before, name, **labels)


def ended(server: ReplayServer, method: str, code: str, number: float = 1) -> Samples:
    """The samples once so many calls of a method have ended with a status: a client may know it before the server counts it."""
    for _ in range(1000):
        samples = scraped(server)
        if value(samples, "grpc_server_handled_total", grpc_method=method, grpc_code=code) >= number:
            return samples
        threading.Event().wait(0.01)
    raise AssertionError(f"no {method} ended with {code}")


def test_calls_count_by_method_type_and_status(server, table):
    with RemoteReplayBuffer(server.address, table=table, buffer_size=100) as buffer:
        buffer.add_batch(rows(10))
        before = scraped(server)
        for _ in range(3):
            buffer.describe()
        with pytest.raises(SlotIndexError):
            buffer.sample_by_index([99])
        out_of_range = value(before, "grpc_server_handled_total", grpc_method="SampleByIndex", grpc_code="OutOfRange")
        after = ended(server, "SampleByIndex", "OutOfRange", out_of_range + 1)
    unary = {"grpc_type": "unary", "grpc_service": "tdreplay.v1.ReplayBufferService", "grpc_method": "Describe"}
    assert growth(before, after, "grpc_server_started_total", **unary) == 3
    assert growth(before, after, "grpc_server_handled_total", **unary, grpc_code="OK") == 3
    assert growth(before, after, "grpc_server_msg_received_total", **unary) == growth(before, after, "grpc_server_msg_sent_total", **unary) == 3
    assert growth(before, after, "grpc_server_handling_seconds_count", **unary) == 3
    assert growth(before, after, "grpc_server_handling_seconds_bucket", **unary, le="+Inf") == 3
    refused = {"grpc_method": "SampleByIndex", "error": "SlotIndexError", "limit": ""}
    assert value(after, "tdreplay_refused_calls_total", **refused) >= 1
    assert growth(before, after, "grpc_server_msg_sent_total", grpc_method="SampleByIndex") == 0


def test_an_open_stream_shows_its_messages_and_one_that_its_client_ends_is_canceled(server, table):
    with RemoteReplayBuffer(server.address, table=table, buffer_size=100, max_times_sampled=2) as buffer:
        buffer.add_batch(rows(10))
        before = scraped(server)
        requests: queue.SimpleQueue[pb.SampleRequest | None] = queue.SimpleQueue()
        # After five batches it waits for rows. A call that waits for its client may end well: gRPC can say that no message comes before it says why.
        requests.put(pb.SampleRequest(table=table, batch_size=4, credits=6, batches_per_message=1, wait_seconds=30))
        with grpc.insecure_channel(server.address) as channel:
            batches = ReplayBufferServiceStub(channel).Sample(iter(requests.get, None))
            for _ in range(5):
                next(batches)
            during = scraped(server)
            batches.cancel()  # The client has not said that it sends no more: then the call would end well.
            requests.put(None)
        assert growth(before, during, "grpc_server_msg_sent_total", grpc_method="Sample") >= 5
        assert growth(before, during, "tdreplay_open_calls", grpc_method="Sample") == 1
        canceled = value(before, "grpc_server_handled_total", grpc_method="Sample", grpc_code="Canceled")
        after = ended(server, "Sample", "Canceled", canceled + 1)
        assert growth(before, after, "tdreplay_open_calls", grpc_method="Sample") == 0


def test_a_call_whose_deadline_passes_counts_as_such(server, table):
    with RemoteReplayBuffer(server.address, table=table, buffer_size=10, rate_limiter=SamplesPerInsert(1.0, min_size=1, error_buffer=10.0)):
        with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
            list(ReplayBufferServiceStub(channel).SampleBatch(pb.SampleBatchRequest(table=table, batch_size=1, wait_seconds=30), timeout=0.3))
        ended(server, "SampleBatch", "DeadlineExceeded")


def test_calls_for_which_there_is_no_room_count_with_the_limit_that_refused_them(server, table):
    with RemoteReplayBuffer(server.address, table=table, buffer_size=10, timeout=1) as buffer:
        buffer.add_batch(rows(3))
        with buffer.stream(1) as one, buffer.stream(1) as other:
            next(one), next(other)
            with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
                next(ReplayBufferServiceStub(channel).SampleAll(pb.SampleAllRequest(table=table), timeout=10))
            samples = scraped(server)
    assert value(samples, "tdreplay_refused_calls_total", grpc_method="SampleAll", error="StreamLimitError", limit="max_streams") == 1
    assert value(samples, "grpc_server_handled_total", grpc_method="SampleAll", grpc_code="ResourceExhausted") == 1
    assert value(samples, "tdreplay_limit_used", limit="max_streams") == value(samples, "tdreplay_limit", limit="max_streams") == 2
    assert value(samples, "tdreplay_clients") >= 1


def test_rows_bytes_ages_and_priorities_of_a_table(server, table):
    with RemoteReplayBuffer(server.address, table=table, buffer_size=100, sampler=Prioritized(), transport="grpc") as buffer:
        buffer.add_batch(rows(150))
        buffer.add_batch(rows(10))
        batch = buffer.sample_batch(20)
        buffer.update_priorities(batch["row_id"], batch["priority"] + 1)
        buffer.update_priorities(torch.tensor([3, 4]), torch.tensor([1.0, 1.0]))
        list(buffer.create_epoch_iterator(50))
        buffer.checkpoint("one")
        with pytest.raises(ReplayError):
            buffer.checkpoint("one/two")
        samples = scraped(server)

    def of(name: str, **labels: str) -> float:
        return value(samples, f"tdreplay_table_{name}", table=table, **labels)

    assert (of("rows"), of("capacity_rows"), of("fill_ratio")) == (100, 100, 1)
    assert (of("inserted_rows_total"), of("sampled_rows_total"), of("replay_ratio")) == (160, 20, 0.125)
    assert of("inserted_bytes_total") == 160 * ROW_BYTES
    assert of("sent_bytes_total") >= 120 * ROW_BYTES
    assert (of("updated_priorities_total"), of("stale_priorities_total"), of("epochs_total")) == (20, 2, 1)
    assert (of("sampled_age_rows_count"), of("updated_age_rows_count")) == (1, 2)
    assert 0 <= of("sampled_age_rows_sum") < 100
    assert 155 <= of("updated_age_rows_sum") < 156 + 100
    assert (of("checkpoints_total"), of("failed_checkpoints_total")) == (1, 0)
    assert of("checkpoint_timestamp_seconds") > 1.7e9 > 60 > of("checkpoint_seconds") > 0
    assert of("journal_seconds_count") > 0


def test_waits_for_the_rate_limiter_show_by_side_while_they_last(server, table):
    limiter = SamplesPerInsert(1.0, min_size=1, error_buffer=10.0)
    with RemoteReplayBuffer(server.address, table=table, buffer_size=100, rate_limiter=limiter) as buffer:
        learner = threading.Thread(target=lambda: buffer.sample_batch(4, wait=True))
        learner.start()
        while not value(scraped(server), "tdreplay_table_limiter_waiting_calls", table=table, side="sample"):
            threading.Event().wait(0.01)
        buffer.add_batch(rows(8))
        learner.join(10)
        samples = scraped(server)
    assert value(samples, "tdreplay_table_limiter_waiting_calls", table=table) == 0
    assert value(samples, "tdreplay_table_limiter_wait_seconds_total", table=table, side="sample") > 0
    assert value(samples, "tdreplay_table_limiter_wait_seconds_total", table=table, side="insert") == 0


def test_the_process_and_its_disk(server):
    samples = scraped(server)
    assert value(samples, "tdreplay_build_info", version="0.1.0") == 1
    assert 0 < value(samples, "tdreplay_uptime_seconds") < 1000
    assert value(samples, "tdreplay_disk_size_bytes") > value(samples, "tdreplay_disk_free_bytes") > 0
    assert value(samples, "process_resident_memory_bytes") > value(samples, "tdreplay_anonymous_memory_bytes") > 1 << 20
    assert value(samples, "tdreplay_threads") > 2
    assert value(samples, "process_max_fds") > value(samples, "process_open_fds") > 2
    assert value(samples, "tdreplay_disk_failed") == 0


def test_a_shard_has_its_number_among_its_metrics(server):
    assert "tdreplay_shard_info" not in page(server.metrics_address)  # It is none.
    config = ServerConfig(address="127.0.0.1:0", metrics_address="127.0.0.1:0", cluster="replay", shard=0)
    with ReplayServer(config) as shard:
        assert value(scraped(shard), "tdreplay_shard_info", cluster="replay", shard="0") == 1


def test_a_table_that_is_dropped_has_no_samples_any_more(server, table):
    with RemoteReplayBuffer(server.address, table=table, buffer_size=10) as buffer:
        assert f'table="{table}"' in page(server.metrics_address)
        buffer.describe()
    with grpc.insecure_channel(server.address) as channel:
        ReplayBufferServiceStub(channel).DropTable(pb.DropTableRequest(table=table), timeout=10)
    assert f'table="{table}"' not in page(server.metrics_address)


def test_a_page_that_is_not_the_metrics_is_not_found(server):
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"http://{server.metrics_address}/secrets", timeout=10)
    with raised.value as answer:
        assert answer.code == 404


def test_clients_that_say_nothing_do_not_keep_the_metrics_from_others(server):
    host, _, port = server.metrics_address.rpartition(":")
    silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(40)]
    try:
        assert page(server.metrics_address)
        assert silent[0].recv(1) == b""  # It came first, and went when there were too many.
    finally:
        for client in silent:
            client.close()


def test_two_servers_in_one_process_have_metrics_of_their_own_which_end_with_them(server, table):
    with ReplayServer(ServerConfig(address=LOCAL, metrics_address=LOCAL, buffer_size=7)) as other:
        address = other.metrics_address
        assert value(scraped(other), "tdreplay_table_capacity_rows", table="default") == 7
        assert value(scraped(other), "tdreplay_tables") == 1
        assert ("tdreplay_disk_free_bytes", frozenset()) not in scraped(other)  # Its rows lie on no disk that it was told.
    with pytest.raises(urllib.error.URLError):
        page(address)
    assert page(server.metrics_address)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def files_of(authority: trustme.CA, directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, in the files that every certificate of the directory is in."""
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(directory / "key.pem")
    for number, blob in enumerate(made.cert_chain_pems):
        blob.write_to_path(directory / "cert.pem", append=number > 0)
    return directory / "cert.pem", directory / "key.pem"


def serial_of(address: str, context: ssl.SSLContext) -> str:
    """The number of the certificate that the page shows."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain, context.wrap_socket(plain, server_hostname=host) as secured:
        return secured.getpeercert()["serialNumber"]


def test_with_a_certificate_the_page_is_served_over_tls_and_a_new_certificate_is_shown_at_once(authority, tmp_path):
    certificate, key = files_of(authority, tmp_path)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with ReplayServer(ServerConfig(address=LOCAL, metrics_address=LOCAL, cert_file=certificate, key_file=key)) as server:
        with urllib.request.urlopen(f"https://{server.metrics_address}/metrics", timeout=10, context=context) as answer:
            assert b"tdreplay_uptime_seconds" in answer.read()
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            page(server.metrics_address)
        first = serial_of(server.metrics_address, context)
        files_of(authority, tmp_path)
        second = serial_of(server.metrics_address, context)
        key.write_text("no key")
        assert first != second == serial_of(server.metrics_address, context)


def test_an_address_that_is_taken_is_an_error_and_leaves_nothing_open(server, tmp_path):
    with pytest.raises(ReplayError, match="metrics_address"):
        ReplayServer(ServerConfig(address=LOCAL, metrics_address=server.metrics_address, data_dir=tmp_path / "data")).start()
    with ReplayServer(ServerConfig(address=LOCAL, data_dir=tmp_path / "data")) as other:  # The directory is free.
        assert other.metrics_address is None
