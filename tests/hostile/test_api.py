"""Raw bytes on the sockets of a pool and of the controller: who may ask, how much, how slowly, to what effect."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import EACCES
from pathlib import Path
from urllib.parse import quote

import pytest

from sharedfs.api.http_server import BODY_BYTES, CONNECTIONS
from sharedfs.common import paths
from tests.support.controller import bills, running_controller
from tests.support.mount import MountedPool
from tests.support.posix import as_user, fails, own_user_namespace
from tests.support.tenants import Tenant, Tenants, wait_until

MIB = 1 << 20
LIMIT = 64 * MIB


@pytest.fixture(scope="module")
def both(shared_pool: MountedPool) -> Iterator[dict[str, Path]]:
    """The sockets of a pool and of a controller that serve all tests of this module."""
    with running_controller():
        yield {"feed": paths.feed_socket(shared_pool.name), "controller": paths.controller_socket()}


@pytest.fixture(params=["feed", "controller"])
def place(request: pytest.FixtureRequest, both: dict[str, Path]) -> Path:
    return both[request.param]


def use_a_mebibyte(pool: MountedPool, tenant: Tenant) -> None:
    tenant.do(f"fd = os.open({str(pool.path / 'f')!r}, os.O_RDWR | os.O_CREAT); os.pwrite(fd, bytes({MIB}), 0)")


def sizes() -> list[tuple[str, int, int | None, int | None]]:
    return [
        (bill["tenant"], bill["share_bytes"], bill["budget_bytes"], bill["limit_bytes"]) for bill in bills()["tenants"]
    ]


@contextmanager
def connected(place: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(place))
        yield client


def everything(client: socket.socket) -> bytes:
    """What comes until the other side closes."""
    told = b""
    try:
        while part := client.recv(1 << 16):
            told += part
    except ConnectionError:  # closed while we were still talking
        pass
    return told


def ask(place: Path, request: bytes) -> tuple[int, bytes]:
    """The status of the answer to raw bytes, 0 for none, and all that came."""
    with connected(place) as client:
        try:
            client.sendall(request)
        except ConnectionError:
            pass
        else:
            client.shutdown(socket.SHUT_WR)
        told = everything(client)
    return int(told.split(b" ", 2)[1]) if told.startswith(b"HTTP/1.1 ") else 0, told


def http(place: Path, method: str, target: str, body: bytes = b"") -> int:
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return ask(place, head.encode() + b"\r\n\r\n" + body)[0]


def ask_until_nobody_listens(client: socket.socket) -> None:
    """Questions without end, and no ear for the answers."""
    client.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            client.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")


def assert_serves(place: Path) -> None:
    assert http(place, "GET", "/openapi.json") == 200


def test_nonsense_is_refused(place: Path) -> None:
    host = b"Host: x\r\n"
    for request in (
        b"\x00\xff\x16\x03\x01" * 1000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n" + host + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET /\x00 HTTP/1.1\r\n" + host + b"\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"Content-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"Content-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"PUT / HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT / HTTP/1.1\r\n" + host + b"Transfer-Encoding: gzip\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + host + b"\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"X: y\r\n" * 20_000 + b"\r\n",
    ):
        status, told = ask(place, request)
        assert 400 <= status <= 501, (request[:80], told[:200])
    assert ask(place, b"")[0] == 0
    assert ask(place, b"GET / HTTP/1.1\r\n")[0] in (0, 400), "half a request"
    assert http(place, "GET", "/v1/nothing") == 404
    assert http(place, "BREW", "/openapi.json") == 405
    assert_serves(place)


def test_bodies_have_bounds(place: Path) -> None:
    """Declared or in parts; what is sent beyond the bound is not even read."""
    assert http(place, "PUT", "/v1/budget?tenant=x", b" " * BODY_BYTES) in (404, 422)
    assert http(place, "PUT", "/v1/budget?tenant=x", b" " * (BODY_BYTES + 1)) == 413
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    head = b"PUT /v1/budget?tenant=x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, _ = ask(place, head + chunk * 400)
    assert status in (0, 413), "0: it hung up before we read why"
    assert_serves(place)


def test_the_slow_are_dropped_and_hold_up_nobody(both: dict[str, Path]) -> None:
    """A request that comes letter by letter, a body that never ends, answers that nobody takes, silence."""
    with ExitStack() as resources:
        slow = {}
        for place in both.values():
            header, body, silent, deaf = slow[place] = [resources.enter_context(connected(place)) for _ in range(4)]
            header.sendall(b"GET /openapi.json HTTP/1.1\r\nHost:")
            body.sendall(b"PUT /v1/budget?tenant=x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            ask_until_nobody_listens(deaf)
            assert_serves(place)
        for header, body, silent, _ in slow.values():
            assert everything(header).startswith(b"HTTP/1.1 408 ")
            assert everything(body).startswith(b"HTTP/1.1 408 ")
            assert everything(silent) == b""
    for place in both.values():
        assert_serves(place)


def test_more_connections_than_anybody_needs(place: Path) -> None:
    """Those beyond the bound are told so at once; when the others go, all is as before."""
    with ExitStack() as clients:
        many = [clients.enter_context(connected(place)) for _ in range(CONNECTIONS + 20)]
        refused = [client for client in many[-10:] if everything(client).startswith(b"HTTP/1.1 503 ")]
        assert len(refused) == 10
    wait_until(lambda: http(place, "GET", "/openapi.json") == 200, "the connections are closed")


def test_a_client_that_takes_no_answer_does_not_keep_limits_lowered(pool: MountedPool, tenants: Tenants) -> None:
    """The controller used to wait for it at its end, with all limits as they were."""
    tenant = tenants.make("a", limit_bytes=LIMIT)
    use_a_mebibyte(pool, tenant)
    with running_controller() as controller:
        assert bills()["tenants"][0]["limit_bytes"] == LIMIT - MIB
        with connected(paths.controller_socket()) as deaf:
            ask_until_nobody_listens(deaf)
            controller.send_signal(signal.SIGTERM)
            controller.wait(15)
    assert tenant.limit() == LIMIT


def test_only_root_is_answered(place: Path) -> None:
    """The socket's mode keeps others away, root of a user namespace too; were it open, we would look who they are."""
    for directory in place.parents:
        if directory != Path("/"):
            os.chmod(directory, os.stat(directory).st_mode | 0o55)

    def ask_plainly() -> tuple[int, bytes]:
        return ask(place, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")

    def ask_as_root_of_its_own() -> tuple[int, bytes]:
        own_user_namespace()
        assert os.getuid() == 0
        return ask_plainly()

    with fails(EACCES):
        as_user(ask_plainly)
    with fails(EACCES):
        as_user(ask_as_root_of_its_own)
    place.chmod(0o666)
    for who in (ask_plainly, ask_as_root_of_its_own):
        status, told = as_user(who)
        assert (status, told.split(b"\r\n\r\n")[1]) == (403, b"only root may ask\n")
    assert_serves(place)


def test_no_order_that_the_command_would_refuse_changes_a_limit(pool: MountedPool, tenants: Tenants) -> None:
    """The API checks for itself; what is wrong is told so, and limits, budgets and sizes stay."""
    free, managed = tenants.make("free"), tenants.make("managed", limit_bytes=LIMIT)
    for tenant in (free, managed):
        use_a_mebibyte(pool, tenant)
    with running_controller():
        place = paths.controller_socket()
        share = MIB // 2
        wait_until(lambda: managed.limit() == LIMIT - share, "the share is off the limit", 30)
        before = sizes()
        good = json.dumps({"budget_bytes": LIMIT}).encode()
        path = quote(free.path)
        bodies: list[object] = [{"budget_bytes": size} for size in (0, -1, 4095, 1 << 62, 1e9 + 0.5, "64M", None, [])]
        bodies += [{}, [], {"budget_bytes": LIMIT, "limit_bytes": 1}, {"limit_bytes": LIMIT}, "x", 1]
        for body in [*(json.dumps(body).encode() for body in bodies), b"", b"{", b"\xff", b'{"budget_bytes": NaN}']:
            assert http(place, "PUT", f"/v1/budget?tenant={path}", body) in (400, 422), body
        names = ["", "/", "..", "/nowhere", f"{path}/../../..", f"{path}/cgroup.procs", f"{path}%00", "%FF", "a" * 5000]
        for name in [*names, quote(managed.path), f"{path}/%252e%252e/%252e%252e/etc"]:
            assert http(place, "PUT", f"/v1/budget?tenant={name}", good) in (404, 409, 422), name
        for method in ("POST", "PATCH", "GET"):
            assert http(place, method, f"/v1/budget?tenant={path}", good) == 405
        assert http(place, "PUT", "/v1/bills", good) == 405
        assert sizes() == before
        assert (free.limit(), managed.limit()) == (None, LIMIT - share)
        feed = paths.feed_socket(pool.name)
        settings = pool.status().settings
        wrong = ("size=4k", "size=-1", "size=1e9", "mode=0", "size", "evil=1", "size=64m,mode=777", "\x00", "x" * 9000)
        for options in wrong:
            body = json.dumps({"options": options}).encode()
            assert http(feed, "POST", "/v1/remount", body) in (409, 422), options
        assert pool.status().settings == settings
        assert http(place, "PUT", f"/v1/budget?tenant={path}", good) == 200
        assert free.limit() == LIMIT - MIB // 2
    assert (free.limit(), managed.limit()) == (None, LIMIT)


def test_questions_that_no_name_can_answer(both: dict[str, Path]) -> None:
    feed = both["feed"]
    for target in ("/v1/files/users?path=%00", "/v1/tenants/files?path=%00", f"/v1/files/users?path={'a/' * 3000}"):
        assert http(feed, "GET", target) == 404
    for path in ("../../etc/passwd", "/etc/passwd", "%2e%2e/removed", "%FF"):
        assert http(feed, "GET", f"/v1/files/users?path={path}") == 404
    assert http(feed, "GET", "/v1/files/users") == 422


def test_claims_that_make_no_sense(
    pool: MountedPool, shared_pool: MountedPool, tenants: Tenants, both: dict[str, Path]
) -> None:
    """Nothing changes, and each is answered: by the feed that believes nobody, and by the controller."""
    owner = tenants.make("owner", LIMIT)
    use_a_mebibyte(pool, owner)
    (pool.path / "link").symlink_to("/etc/passwd")
    (pool.path / "out").symlink_to("/etc")
    before = pool.holdings().classes
    feed, controller = paths.feed_socket(pool.name), both["controller"]
    there = quote(owner.path)
    for query, code in (
        ("", 422),
        ("path=f&recursive=perhaps", 422),
        (f"path=none&tenant={there}", 404),
        (f"path=out/passwd&tenant={there}", 404),
        (f"path=../../etc/passwd&tenant={there}", 404),
        ("path=%00", 404),
        ("path=f&tenant=/no/such", 404),
        ("path=f&tenant=%00", 404),
        (f"path=f&tenant={'a' * 5000}", 404),
        (f"path=f&tenant={quote('/../../etc')}", 404),
        (f"path=&tenant={there}", 409),
        (f"path=link&tenant={there}", 409),  # the symlink itself, which has no page
    ):
        assert http(feed, "PUT", f"/v1/owner?{query}") == code, query
    for query, code in (
        ("path=relative", 422),
        ("path=/etc/passwd", 404),
        (f"path={shared_pool.path}&tenant=/no/such", 404),
        (f"path={shared_pool.path}&tenant=", 422),
        (f"path={shared_pool.path}&tenant=%00", 404),
        (f"path={shared_pool.path}/none&tenant={there}", 404),
        (f"path={shared_pool.path}&tenant={there}", 422),
    ):
        assert http(controller, "PUT", f"/v1/owner?{query}") == code, query
    assert pool.holdings().classes == before
