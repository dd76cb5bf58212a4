"""The command that makes, lists and revokes tokens, and the file that it keeps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import pytest
from certificates import issued

from children import completed
from tdreplay.errors import InvalidArgumentError, UnauthenticatedError
from tdreplay_server.access.identities import Identities
from tdreplay_server.access.roles import Role
from tdreplay_server.access.tokens import Tokens
from tdreplay_server.access.tokens_file import change_tokens, read_tokens


def token(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return completed("tdreplay-server", "token", *arguments, **environment)


def created(path: Path, *arguments: str) -> str:
    """A new token, as the command prints it."""
    done = token("create", *arguments, "--tokens-file", str(path))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"tdr_[\w-]{43}\n", done.stdout)
    return done.stdout.strip()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "tokens.json"


def test_a_token_is_printed_once_and_kept_as_a_hash_that_only_the_owner_can_read(path):
    before = os.umask(0)
    try:
        secret = created(path, "--role", "learner", "--role", "actor", "--table", "atari-*", "--table", "chess", "--name", "me")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert secret.removeprefix("tdr_") not in path.read_text()
    principal = Identities(path, certificates=False).of_token(secret)
    assert (principal.name, principal.roles, principal.tables) == ("me", {Role.LEARNER, Role.ACTOR}, ("atari-*", "chess"))


def test_tokens_are_listed_without_what_would_let_anybody_in(path):
    secret = created(path, "--role", "reader", "--expires", "30d")
    listed = token("list", "--json", TDREPLAY_TOKENS_FILE=str(path)).stdout
    (entry,) = json.loads(listed)
    assert set(entry) == {"name", "roles", "tables", "created", "expires"}
    assert entry["name"].startswith("reader-")
    shown = token("list", "--tokens-file", str(path)).stdout
    assert re.fullmatch(rf"{entry['name']}  roles reader; tables \*; expires [\d-]+ [\d:]+ UTC\n", shown)
    assert secret not in listed + shown


def test_a_token_that_is_revoked_or_has_expired_is_not_valid(path):
    first, now = created(path, "--role", "admin", "--name", "a"), datetime.now(timezone.utc)
    second = issued(path, name="b", roles=(Role.ADMIN,), created=now, expires=now)
    assert token("revoke", "a", "--tokens-file", str(path)).returncode == 0
    known = Identities(path, certificates=False)
    with pytest.raises(UnauthenticatedError, match="not known"):
        known.of_token(first)
    with pytest.raises(UnauthenticatedError, match="'b' has expired"):
        known.of_token(second)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("revoke", "nobody"), "no token has the name 'nobody'"),
        (("create", "--role", "admin", "--name", "taken"), "a token has the name 'taken' already"),
        (("create", "--role", "admin", "--name", "a b"), "name ('a b') must be"),
        (("create", "--role", "admin", "--table", "../x"), "table ('../x') must be"),
        (("create", "--role", "admin", "--expires", "soon"), "expires ('soon') must be"),
        (("create", "--role", "admin", "--expires", "0d"), "expires ('0d') must be"),
        (("create", "--role", "admin", "--expires", "9999w"), "at most 100 years"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(path, arguments, words):
    created(path, "--role", "actor", "--name", "taken")
    before = path.read_bytes()
    done = token(*arguments, "--tokens-file", str(path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert words in done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("arguments", [("create", "--role", "admin"), ("list",), ("revoke", "x")])
def test_without_a_file_the_command_says_how_to_name_one(arguments):
    done = token(*arguments, TDREPLAY_TOKENS_FILE="")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--tokens-file, or TDREPLAY_TOKENS_FILE" in done.stderr


def test_two_who_change_the_file_at_once_both_succeed(path):
    """Each waits inside its change until the other has begun its own, or a second: without a lock one of them would be lost."""
    begun = threading.Barrier(2)

    def change(name: str) -> None:
        def add(tokens: Tokens) -> Tokens:
            with suppress(threading.BrokenBarrierError):
                begun.wait(0.5)
            return tokens.with_token(example.model_copy(update={"name": name}))

        change_tokens(path, add)

    created(path, "--role", "actor", "--name", "example")
    example = read_tokens(path).tokens[0]
    threads = [threading.Thread(target=change, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {entry.name for entry in read_tokens(path).tokens} == {"example", "a", "b"}


ENTRY = {"name": "a", "sha256": "0" * 64, "roles": ["actor"], "tables": ["*"], "created": "2030-01-01T00:00:00Z", "expires": None}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "Invalid JSON"),
        ("[]", "object"),
        ('{"version": 2, "tokens": []}', "version: is 2"),
        ('{"version": "1", "tokens": []}', "version: Input should be a valid integer"),
        ('{"tokens": [], "extra": 1}', "extra"),
        *[
            (json.dumps({"version": 1, "tokens": [{**ENTRY, **change}]}), words)
            for change, words in [
                ({"name": "a/b"}, "name"),
                ({"sha256": "0"}, "sha256"),
                ({"roles": []}, "roles"),
                ({"roles": ["root"]}, "roles"),
                ({"tables": []}, "tables"),
                ({"tables": ["a/*"]}, "table ('a/*')"),
                ({"created": "2030-01-01T00:00:00"}, "timezone"),
                ({"expires": 5}, "expires"),
            ]
        ],
        (json.dumps({"version": 1, "tokens": [ENTRY, ENTRY]}), "2 tokens have the name 'a'"),
    ],
)
def test_a_file_that_is_not_what_the_command_writes_is_refused_with_the_place(path, content, words):
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(InvalidArgumentError, match=re.escape(f"tokens_file ({path}) is broken: ")) as raised:
        read_tokens(path)
    assert words in str(raised.value)
    assert "0" * 64 not in str(raised.value)


def test_a_file_that_others_may_write_to_is_refused_and_one_that_they_read_is_a_warning(path, caplog):
    created(path, "--role", "admin")
    path.chmod(0o644)
    assert len(read_tokens(path).tokens) == 1
    assert "all users can read" in caplog.text
    for mode in (0o620, 0o602):
        path.chmod(mode)
        with pytest.raises(InvalidArgumentError, match="other users may write to it"):
            read_tokens(path)


def test_a_file_may_be_a_link_and_stays_one(path, tmp_path):
    (tmp_path / "mounted").mkdir()
    path.symlink_to(tmp_path / "mounted" / "real.json")
    secret = created(path, "--role", "admin")
    assert path.is_symlink()
    assert Identities(path, certificates=False).of_token(secret).may_use("any")


def test_a_pipe_in_the_place_of_the_file_is_refused_and_does_not_end_the_look_at_it(path):
    secret = created(path, "--role", "learner", "--name", "me")
    known = Identities(path, certificates=False)
    known.start()
    try:
        path.unlink()
        os.mkfifo(path, 0o600)
        with pytest.raises(InvalidArgumentError, match="no regular file"):
            read_tokens(path)
        time.sleep(1.5)
        assert known.of_token(secret).name == "me"
        path.unlink()
        change_tokens(path, lambda tokens: tokens)
        ends = time.monotonic() + 20
        with suppress(UnauthenticatedError):
            while known.of_token(secret):
                assert time.monotonic() < ends
                time.sleep(0.05)
    finally:
        known.close()
