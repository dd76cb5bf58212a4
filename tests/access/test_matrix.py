"""Every kind of server, caller, table and call, over the wire with stubs of the generated code: who gets through, and what the others hear.

What is expected is written here by hand, after docs/security.md, and nothing of it is read from the code.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from certificates import Authority, bearer, issued

from tdreplay.v1 import replay_buffer_pb2 as pb
from tdreplay.v1.replay_buffer_pb2_grpc import ReplayBufferServiceStub
from tdreplay_server import ReplayServer, ServerConfig
from tdreplay_server.access.roles import Role
from tdreplay_server.access.tokens_file import change_tokens

OK, DENIED, UNKNOWN = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
INVALID, MISSING, UNFIT = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
EVERY = "actor learner reader admin"
TABLES = ("own-1", "other-1")


class Case(NamedTuple):
    """A call: the roles that may make it, what the server says to them, and the request for a table."""

    roles: str
    status: grpc.StatusCode
    request: Any


# What the handlers say to these requests shows that they were reached: most of them are not whole.
CASES = {
    "Add": Case("actor admin", INVALID, lambda table: pb.AddRequest(table=table)),
    "AddBatch": Case("actor admin", INVALID, lambda table: iter([pb.AddBatchRequest(table=table)])),
    "Sample": Case("learner admin", INVALID, lambda table: iter([pb.SampleRequest(table=table)])),
    "SampleBatch": Case("learner admin", INVALID, lambda table: pb.SampleBatchRequest(table=table)),
    "SampleAll": Case("learner admin", UNFIT, lambda table: pb.SampleAllRequest(table=table)),
    "Epoch": Case("learner admin", INVALID, lambda table: iter([pb.EpochRequest(table=table)])),
    "UpdatePriorities": Case("learner admin", UNFIT, lambda table: pb.UpdatePrioritiesRequest(table=table)),
    "SampleByIndex": Case("learner reader admin", INVALID, lambda table: pb.SampleByIndexRequest(table=table)),
    "SampleEpisode": Case("learner reader admin", UNFIT, lambda table: pb.SampleEpisodeRequest(table=table)),
    "ListEpisodes": Case("learner reader admin", UNFIT, lambda table: pb.ListEpisodesRequest(table=table)),
    "Describe": Case(EVERY, OK, lambda table: pb.DescribeRequest(table=table)),
    "ListTables": Case(EVERY, OK, lambda table: pb.ListTablesRequest()),
    "ServerStatus": Case("reader admin", OK, lambda table: pb.ServerStatusRequest()),
    "CreateTable": Case(EVERY, OK, lambda table: pb.CreateTableRequest(table=table, buffer_size=10)),
    "DropTable": Case("admin", MISSING, lambda table: pb.DropTableRequest(table=f"{table}-gone")),
    "Reset": Case("admin", OK, lambda table: pb.ResetRequest(table=table)),
    "Rewind": Case("admin", INVALID, lambda table: pb.RewindRequest(table=table)),
    "Checkpoint": Case("admin", UNFIT, lambda table: pb.CheckpointRequest(table=table, name="first")),
}
WITHOUT_TABLE = {"ListTables", "ServerStatus"}

CALLERS = {
    "nothing": None,
    "malformed": None,
    "of-another-server": None,
    "revoked": None,
    "expired": None,
    "actor": ("actor", ["own-1"]),
    "learner": ("learner", ["own-1"]),
    "reader": ("reader", ["own-1"]),
    "admin": ("admin", ["own-1"]),
    "actor-reader": ("actor reader", ["own-1"]),
    "operator": ("admin", ["own-1", "other-1"]),
}
"""What each token is good for: its roles and tables; None: nothing."""

CERTIFICATES = {
    "learner:own-*": ("learner", ["own-1"]),
    "actor+reader": ("actor reader", ["own-1", "other-1"]),
    "admin:x,own-?*": ("admin", ["own-1"]),
    "learner+actr": ("", ["own-1", "other-1"]),
    "actor:own *": ("actor", []),
    "machine-7": None,
}
"""The same of common names. A name without a role counts on servers without tokens, and lets do everything there."""
ALL = (EVERY, ["own-1", "other-1"])


class World:
    """Servers of every kind, and channels to them."""

    def __init__(self, stack: ExitStack, directory) -> None:
        self.authority, self._stack = Authority(directory / "ca"), stack
        tokens_file = directory / "tokens.json"
        self.tokens = _tokens(tokens_file)
        kinds = {"open": {}, "tls": self.authority.server_files, "mutual": self.authority.mutual}
        self.servers = {
            (kind, asks): stack.enter_context(_server(**settings, **({"tokens_file": tokens_file} if asks else {})))
            for kind, settings in kinds.items()
            for asks in (False, True)
        }

    def stub(self, kind: str, asks: bool, certificate: str | None = None) -> ReplayBufferServiceStub:
        address = self.servers[kind, asks].address
        if kind == "open":
            return ReplayBufferServiceStub(self._stack.enter_context(grpc.insecure_channel(address)))
        return ReplayBufferServiceStub(self._stack.enter_context(grpc.secure_channel(address, self.authority.credentials(certificate))))


def _server(**settings: Any) -> ReplayServer:
    tables = {name: {"buffer_size": 10} for name in TABLES}
    return ReplayServer(ServerConfig(address="127.0.0.1:0", tables=tables, **settings))


def _tokens(path) -> dict[str, tuple[tuple[str, str], ...]]:
    """The metadata of each caller."""
    now = datetime.now(timezone.utc)
    rights = {name: entry or ("admin", ["*"]) for name, entry in CALLERS.items() if name not in ("nothing", "malformed", "of-another-server")}
    found = {
        name: bearer(
            issued(
                path,
                name=name,
                roles=tuple(map(Role, roles.split())),
                tables=("own-*",) if tables == ["own-1"] else ("*",),
                created=now,
                expires=now - timedelta(seconds=1) if name == "expired" else None,
            )
        )
        for name, (roles, tables) in rights.items()
    }
    change_tokens(path, lambda tokens: tokens.without("revoked"))
    return found | {"nothing": (), "malformed": (("authorization", "Basic YTpi"),), "of-another-server": bearer("tdr_" + "A" * 43)}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, tmp_path_factory.mktemp("matrix"))


def status(stub: ReplayBufferServiceStub, method: str, table: str, metadata: Any = ()) -> grpc.StatusCode:
    """How a call ends."""
    answer = getattr(stub, method)
    try:
        answers = answer(CASES[method].request(table), timeout=30, metadata=metadata)
        for _ in answers if isinstance(answers, grpc.Call) else ():
            pass
    except grpc.RpcError as error:
        return error.code()
    return OK


def expected(rights: tuple[str, list[str]] | None, method: str, table: str) -> grpc.StatusCode:
    """What docs/security.md says of a caller with these rights."""
    if rights is None:
        return UNKNOWN
    roles, tables = rights
    case = CASES[method]
    may = bool(set(roles.split()) & set(case.roles.split())) and (table in tables or method in WITHOUT_TABLE)
    return case.status if may else DENIED


def differences(stub: ReplayBufferServiceStub, rights: Any, metadata: Any = ()) -> list[str]:
    """Where a caller does not hear what it should: nowhere."""
    return [
        f"{method} on {table}: {found}, not {wanted}"
        for method in CASES
        for table in TABLES
        for found, wanted in ((status(stub, method, table, metadata), expected(rights, method, table)),)
        if found is not wanted
    ]


def test_the_matrix_has_every_call_of_the_proto():
    assert set(CASES) == {method.name for method in pb.DESCRIPTOR.services_by_name["ReplayBufferService"].methods}


def test_the_documentation_has_the_same_table():
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| (yes)? ?\| (yes)? ?\| (yes)? ?\| (yes)? ?\|$", text, re.M)
    documented = {
        method: {role for role, said in zip(EVERY.split(), said, strict=True) if said}
        for calls, *said in reversed(rows)  # Of CreateTable the line counts that comes first.
        for method in re.findall(r"`(\w+)`", calls)
    }
    assert documented == {method: set(case.roles.split()) for method, case in CASES.items()}


@pytest.mark.parametrize("kind", ["open", "tls"])
def test_without_tokens_and_certificates_everybody_may_do_everything(world, kind):
    assert differences(world.stub(kind, asks=False), ALL) == []
    assert differences(world.stub(kind, asks=False), ALL, world.tokens["of-another-server"]) == []


@pytest.mark.parametrize("kind", ["open", "tls", "mutual"])
def test_with_tokens_each_caller_may_do_what_its_token_says(world, kind):
    stub = world.stub(kind, True, "machine-7" if kind == "mutual" else None)
    assert {name: found for name, rights in CALLERS.items() if (found := differences(stub, rights, world.tokens[name]))} == {}


def test_a_certificate_may_do_what_its_name_says_and_without_a_role_everything(world):
    found = {name: differences(world.stub("mutual", False, name), rights or ALL) for name, rights in CERTIFICATES.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_beside_tokens_a_certificate_needs_a_role_in_its_name(world):
    found = {name: differences(world.stub("mutual", True, name), rights) for name, rights in CERTIFICATES.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("asks", [False, True])
def test_a_token_counts_more_than_the_certificate_beside_it(world, asks):
    stub = world.stub("mutual", asks, "admin")
    assert status(stub, "Reset", "own-1") is OK
    assert status(stub, "Reset", "own-1", world.tokens["reader"]) is (DENIED if asks else UNKNOWN)
    assert status(stub, "Describe", "own-1", world.tokens["of-another-server"]) is UNKNOWN


@pytest.mark.parametrize("asks", [False, True])
def test_tls_lets_nobody_in_without_it_or_without_the_certificate_that_it_asks_for(world, tmp_path, asks):
    stranger = Authority(tmp_path / "another")
    for kind in ("tls", "mutual"):
        address = world.servers[kind, asks].address
        channels = [grpc.insecure_channel(address), grpc.secure_channel(address, stranger.credentials("admin"))]
        channels += [grpc.secure_channel(address, world.authority.credentials())] if kind == "mutual" else []
        for channel in channels:
            with channel:
                assert status(ReplayBufferServiceStub(channel), "Describe", "own-1", world.tokens["operator"]) is grpc.StatusCode.UNAVAILABLE


def test_a_list_has_the_tables_of_the_caller_alone(world):
    stub = world.stub("tls", asks=True)
    assert stub.ListTables(pb.ListTablesRequest(), metadata=world.tokens["reader"]).tables == ["own-1"]
    assert stub.ListTables(pb.ListTablesRequest(), metadata=world.tokens["operator"]).tables == ["other-1", "own-1"]


def test_only_an_admin_makes_a_table_and_others_make_sure_that_it_is_there(world):
    stub = world.stub("open", asks=True)

    def create(name: str, buffer_size: int, caller: str) -> grpc.StatusCode:
        try:
            stub.CreateTable(pb.CreateTableRequest(table=name, buffer_size=buffer_size), metadata=world.tokens[caller], timeout=30)
        except grpc.RpcError as error:
            return error.code()
        return OK

    assert [create("own-2", 10, caller) for caller in ("actor", "learner", "reader")] == [DENIED] * 3
    assert create("other-2", 10, "admin") is DENIED
    assert create("own-2", 10, "admin") is OK
    assert [create("own-2", 10, caller) for caller in ("actor", "learner", "reader")] == [OK] * 3
    assert create("own-2", 11, "actor") is grpc.StatusCode.ALREADY_EXISTS


def test_a_stream_may_not_go_on_to_a_table_of_others(world):
    stub = world.stub("open", asks=True)
    opening = pb.AddBatchRequest(table="own-1", shared_slots=1, slot_bytes=1 << 20)  # It has no block, so the stream goes on.
    for later, wanted in (("", INVALID), ("own-1", INVALID), ("other-1", DENIED)):
        answers = stub.AddBatch(iter([opening, pb.AddBatchRequest(table=later)]), metadata=world.tokens["actor"], timeout=30)
        assert next(answers).HasField("shared_memory")
        with pytest.raises(grpc.RpcError) as raised:
            next(answers)
        assert raised.value.code() is wanted


@pytest.mark.parametrize(("caller", "wanted"), [("nothing", UNKNOWN), ("revoked", UNKNOWN), ("nobody", DENIED)])
def test_who_may_not_call_is_refused_before_a_request_comes(world, caller, wanted):
    over = threading.Event()
    with grpc.insecure_channel(world.servers["open", True].address) as channel:
        for method, case in CASES.items():
            if caller == "nobody" and case.roles == EVERY:
                continue
            token = world.tokens[next(role for role in EVERY.split() if role not in case.roles.split()) if caller == "nobody" else caller]
            call = channel.stream_stream(f"/tdreplay.v1.ReplayBufferService/{method}")
            with pytest.raises(grpc.RpcError) as raised:
                next(call(_after(over), metadata=token, timeout=30))
            assert (method, raised.value.code()) == (method, wanted)
        over.set()


def _after(over: threading.Event) -> Iterator[bytes]:
    """No request, and no end of them either."""
    over.wait(30)
    yield from ()
