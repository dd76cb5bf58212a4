"""What surrounds every call: guards, in their order, for single calls and streams alike."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tdreplay.errors import EmptyTableError, StreamLimitError
from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_server.access.principal import ANYBODY
from tdreplay_server.transport.dispatch import Dispatch
from tdreplay_server.transport.guards.guard import guarded
from tdreplay_server.transport.guards.permits import Permits
from tdreplay_server.transport.guards.running import Running
from tdreplay_server.transport.guards.statuses import statuses

SERVICE = pb.DESCRIPTOR.services_by_name["ReplayBufferService"]


def failing(request, call):
    raise ZeroDivisionError("a secret")


def failing_after_an_answer(request, call):
    yield pb.SampleAllResponse(batch_rows=1)
    raise ZeroDivisionError("a secret")


def refused_after_an_answer(request, call):
    yield pb.SampleBatchResponse(batch_rows=1)
    raise EmptyTableError("no row any more")


class Service:
    """Some calls of the proto as a test needs them. The others are not called."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.ended: queue.SimpleQueue[grpc.StatusCode] = queue.SimpleQueue()
        self._calls = {"SampleAll": failing_after_an_answer, "SampleBatch": refused_after_an_answer, "ListTables": self._telling}
        self._calls |= {"Reset": self._watched, "DropTable": self._watched}

    def _telling(self, request, call):
        self.seen += [call.method, call.principal, call.is_active]
        return pb.ListTablesResponse(tables=[call.peer])

    def _watched(self, request, call):
        call.on_end(lambda: self.ended.put(call.status))
        if call.method == "DropTable":
            raise EmptyTableError("no row")
        return pb.ResetResponse()

    def __getattr__(self, name):
        return self._calls.get(name, failing)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def stub(service) -> Iterator[ReplayBufferServiceStub]:
    running = Running(8)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Dispatch(SERVICE, service, (statuses, running, Permits(1, 0)), running.admit),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield ReplayBufferServiceStub(channel)
    running.stop(5)
    server.stop(0).wait()


def test_a_handler_knows_who_calls(stub, service):
    (peer,) = stub.ListTables(pb.ListTablesRequest(), timeout=20).tables
    assert peer.startswith("ipv4:127.0.0.1:")
    assert service.seen == ["ListTables", ANYBODY, True]


def test_a_call_knows_the_status_with_which_it_ended(stub, service):
    stub.Reset(pb.ResetRequest(), timeout=20)
    with pytest.raises(grpc.RpcError):
        stub.DropTable(pb.DropTableRequest(), timeout=20)
    assert [service.ended.get(timeout=20) for _ in range(2)] == [grpc.StatusCode.OK, grpc.StatusCode.FAILED_PRECONDITION]


CALLS = {
    "single": lambda stub: stub.Describe(pb.DescribeRequest(), timeout=20),
    "stream": lambda stub: list(stub.SampleAll(pb.SampleAllRequest(), timeout=20)),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_bug_is_in_the_log_and_the_client_hears_nothing_of_it(stub, caplog, kind):
    for _ in range(3):  # Each gives back what it took: there is one permit.
        caplog.clear()
        with pytest.raises(grpc.RpcError) as raised:
            CALLS[kind](stub)
        assert raised.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in f"{raised.value.details()} {raised.value.trailing_metadata()}"
        (record,) = [record for record in caplog.records if record.name == "tdreplay" and record.levelno == logging.ERROR]
        assert "ZeroDivisionError: a secret" in record.getMessage()


def test_an_error_after_an_answer_ends_a_stream_with_its_status(stub):
    answers = stub.SampleBatch(pb.SampleBatchRequest(), timeout=20)
    assert next(answers).batch_rows == 1
    with pytest.raises(grpc.RpcError) as raised:
        next(answers)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert ("tdreplay-error", "EmptyTableError") in [tuple(entry) for entry in raised.value.trailing_metadata()]


def test_guards_are_passed_from_the_outside_in_and_left_again_when_the_answers_end():
    said = []

    def telling(name):
        def guard(requests, call, proceed):
            said.append(f"into {name}")
            try:
                yield from proceed(requests, call)
            finally:
                said.append(f"out of {name}")

        return guard

    answers = iter(guarded(lambda requests, call: requests, [telling("outer"), telling("inner")])(iter([1, 2]), None))
    assert next(answers) == 1
    assert said == ["into outer", "into inner"]
    answers.close()
    assert said == ["into outer", "into inner", "out of inner", "out of outer"]


def test_a_guard_that_refuses_keeps_the_call_from_what_is_behind_it():
    def refusing(requests, call, proceed):
        raise StreamLimitError("no more")

    with pytest.raises(StreamLimitError):
        guarded(lambda requests, call: pytest.fail("it was called"), [refusing])(iter(()), None)
