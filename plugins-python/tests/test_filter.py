"""What a filter is given, what becomes of its answer, and what happens when it has none."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from harness import FILTER, FILTER_PROGRAM, HEALTH, LIFECYCLE, PluginProcess, request

from palisade import (
    Address,
    Config,
    Plugin,
    Request,
    Response,
    ResponseVerdict,
    Route,
    TlsInfo,
    Verdict,
    allow,
    deny,
    keep,
    replace,
)
from palisade._generated import filter_pb2
from palisade.testing import CallFailed, PluginTester


def filter_of(function: Callable[..., Any], **options: Any) -> Plugin:
    plugin = Plugin("test")
    plugin.filter(**options)(function)
    return plugin


def raises(request: Request, config: Config) -> Verdict:
    raise LookupError(f"no {config['allow']}")


async def raises_async(request: Request, config: Config) -> Verdict:
    await asyncio.sleep(0)
    raise LookupError("later")


def exits(request: Request, config: Config) -> Verdict:
    raise SystemExit(0)


async def exits_async(request: Request, config: Config) -> Verdict:
    raise SystemExit(0)


def stops_iteration(request: Request, config: Config) -> Verdict:
    raise StopIteration


def surrogates(request: Request, config: Config) -> Verdict:
    raise ValueError("caf\udce9 " + "x" * 10_000)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raises, "filter `raises` raised KeyError: 'allow'"),
        (raises_async, "filter `raises_async` raised LookupError: later"),
        (exits, "filter `exits` raised RuntimeError: filter `exits` tried to exit the process"),
        (exits_async, "tried to exit the process"),
        (stops_iteration, "raised StopIteration"),
        (surrogates, "filter `surrogates` raised ValueError: caf\\udce9 xxx"),
    ],
)
def test_a_filter_that_raises_fails_the_call(
    function: Callable[..., Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with PluginTester(filter_of(function)) as tester:
        with pytest.raises(CallFailed) as failed:
            tester.check(id="request-7")
        assert failed.value.code == "INTERNAL"
        assert message in failed.value.message
        [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert record.exc_info is not None
        assert vars(record)["request_id"] == "request-7"
        # And it is the call that failed, not the plugin.
        with pytest.raises(CallFailed, match="INTERNAL"):
            tester.check()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a task cannot tell who cancelled it")
def test_a_filter_that_cancels_itself_fails_the_call() -> None:
    """Left alone, grpcio never answers the call."""

    async def check(request: Request, config: Config) -> Verdict:
        raise asyncio.CancelledError

    with PluginTester(filter_of(check)) as tester:
        with pytest.raises(CallFailed, match="INTERNAL: filter `check` raised RuntimeError: .* cancelled itself"):
            tester.check()


def test_a_filter_is_cancelled_with_the_call() -> None:
    cancelled = threading.Event()

    async def check(request: Request, config: Config) -> Verdict:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return allow()

    with PluginTester(filter_of(check), timeout=0.5) as tester:
        with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED"):
            tester.check()
        assert cancelled.wait(60)


@pytest.mark.parametrize("answer", [None, True, 200, "allow", keep(), replace(200), allow, (True,)], ids=repr)
def test_anything_but_a_verdict_fails_the_call(answer: object) -> None:
    with PluginTester(filter_of(lambda request, config: answer)) as tester:
        with pytest.raises(CallFailed, match=r"INTERNAL: filter `<lambda>` returned \w+, not allow\(\) or deny\(\)"):
            tester.check()


@pytest.mark.parametrize("answer", [None, allow(), deny()], ids=repr)
def test_anything_but_a_response_verdict_fails_the_call(answer: Any) -> None:
    plugin = Plugin("test")
    plugin.response(lambda response, config: answer)
    with PluginTester(plugin) as tester:
        with pytest.raises(CallFailed, match=r"INTERNAL: .* not keep\(\) or replace\(\)"):
            tester.check_response()


def test_a_filter_sees_the_request() -> None:
    seen: list[tuple[Request, Config]] = []

    def check(request: Request, config: Config) -> Verdict:
        seen.append((request, config))
        return allow()

    with PluginTester(filter_of(check), {"allow": ["admin"], "limit": 3, "share": 0.5, "deep": {"on": True}}) as tester:
        tester.check(
            "/a%20b?q=1?2",
            method="POST",
            authority="a.example:8443",
            headers=[("X-User", "one"), ("accept", "*/*"), ("x-user", b"caf\xe9")],
            protocol="HTTP/2.0",
            peer=Address("2001:db8::1", 4711),
            local=Address(unix_path="/run/palisade.sock"),
            tls=TlsInfo("a.example", "h2", "TLSv1.3", (b"leaf",)),
            listener="public",
            route=Route("api", {"team": "core"}),
            id="id-1",
            traceparent="00-1-2-01",
            tracestate="k=v",
        )
    [(request, config)] = seen
    assert config == {"allow": ["admin"], "limit": 3, "share": 0.5, "deep": {"on": True}}
    assert isinstance(config["limit"], int)
    assert (request.method, request.scheme, request.authority) == ("POST", "https", "a.example:8443")
    assert (request.host, request.path, request.query, request.has_query) == ("a.example", "/a%20b", "q=1?2", True)
    assert request.protocol == "HTTP/2.0"
    assert request.headers.raw == (("x-user", b"one"), ("accept", b"*/*"), ("x-user", b"caf\xe9"))
    assert request.headers.get("X-USER") == "one"
    assert request.headers.get_all("x-user") == ["one", "caf\udce9"]
    assert str(request.peer) == "[2001:db8::1]:4711"
    assert str(request.local) == "unix:/run/palisade.sock"
    assert request.tls == TlsInfo("a.example", "h2", "TLSv1.3")
    assert (request.listener, request.route) == ("public", Route("api", {"team": "core"}))
    assert (request.id, request.traceparent, request.tracestate) == ("id-1", "00-1-2-01", "k=v")
    with pytest.raises(RuntimeError, match=r"@plugin.filter\(body=True\)"):
        request.body


def test_what_is_not_there_is_none() -> None:
    seen: list[Request] = []

    def check(request: Request, config: Config) -> Verdict:
        seen.append(request)
        return allow()

    with PluginTester(filter_of(check)) as tester:
        tester.check("/x?", route=None)
        tester.check("/x")
    assert (seen[0].tls, seen[0].route, seen[0].query, seen[0].has_query) == (None, None, "", True)
    assert seen[1].has_query is False


@pytest.mark.parametrize(
    ("authority", "host"),
    [("a.example", "a.example"), ("a.example:80", "a.example"), ("[::1]", "[::1]"), ("[::1]:80", "[::1]"), ("", "")],
)
def test_the_host_is_the_authority_without_port(authority: str, host: str) -> None:
    with PluginTester(filter_of(lambda request, config: deny(403, request.host))) as tester:
        assert tester.check(authority=authority).text == host


def test_a_filter_gets_body_and_client_certificate_if_it_asks() -> None:
    def check(request: Request, config: Config) -> Verdict:
        assert request.tls is not None
        return deny(200, request.body + b"".join(request.tls.peer_certificates))

    plugin = filter_of(check, body=True, max_body=10, peer_certificates=True)
    with PluginTester(plugin) as tester:
        assert tester.check(body=b"body+", tls=TlsInfo(peer_certificates=(b"leaf", b"root"))).body == b"body+leafroot"
        assert tester.check(tls=TlsInfo()).body == b""
        with pytest.raises(ValueError, match="the filter takes 10"):
            tester.check(body=b"x" * 11)


def test_a_large_body_arrives() -> None:
    with PluginTester(filter_of(lambda request, config: deny(200, str(len(request.body))), body=True)) as tester:
        assert tester.check(body=b"x" * 15 * 1024 * 1024).text == str(15 * 1024 * 1024)


@pytest.mark.parametrize("value", [b"\xff\xfe", b"caf\xe9", "grüße".encode(), b""])
def test_values_come_back_byte_for_byte(value: bytes) -> None:
    def check(request: Request, config: Config) -> Verdict:
        return deny(403, headers={"x-copy": request.headers["x-value"]})

    with PluginTester(filter_of(check)) as tester:
        assert tester.check(headers={"x-value": value}).headers.raw == (("x-copy", value),)


def test_an_allow_changes_request_and_response() -> None:
    verdict = allow(
        set_headers={"X-Auth": "ok"},
        add_headers=[("via", "1"), ("via", "2")],
        remove_headers=["Cookie"],
        response_headers={"cache-control": "no-store"},
        add_response_headers=[("set-cookie", "a=1"), ("set-cookie", "b=2")],
        remove_response_headers=["server"],
    )
    with PluginTester(filter_of(lambda request, config: verdict)) as tester:
        outcome = tester.check()
    assert outcome.allowed
    assert outcome.status is None
    assert outcome.headers_set == {"x-auth": "ok"}
    assert outcome.headers_added == [("via", "1"), ("via", "2")]
    assert outcome.headers_removed == ["cookie"]
    assert outcome.response_headers_set == {"cache-control": "no-store"}
    assert outcome.response_headers_added == [("set-cookie", "a=1"), ("set-cookie", "b=2")]
    assert outcome.response_headers_removed == ["server"]


def test_coroutines_run_side_by_side_on_one_loop() -> None:
    loops: set[object] = set()
    here = asyncio.Event()

    async def check(request: Request, config: Config) -> Verdict:
        loops.add(asyncio.get_running_loop())
        if request.path == "/first":
            await here.wait()
        here.set()
        return allow()

    with PluginTester(filter_of(check)) as tester:
        first = threading.Thread(target=tester.check, args=["/first"])
        first.start()
        assert tester.check("/second").allowed
        first.join(60)
        assert not first.is_alive()
    assert len(loops) == 1


def test_functions_run_side_by_side_on_threads() -> None:
    both = threading.Barrier(2)

    def check(request: Request, config: Config) -> Verdict:
        both.wait(60)
        return allow()

    with PluginTester(filter_of(check)) as tester:
        other = threading.Thread(target=tester.check)
        other.start()
        assert tester.check().allowed
        other.join(60)


def test_a_function_may_return_a_coroutine() -> None:
    async def check(request: Request, config: Config) -> Verdict:
        return deny(418)

    with PluginTester(filter_of(lambda request, config: check(request, config))) as tester:
        assert tester.check().status == 418


def test_an_object_with_an_async_call_is_a_filter() -> None:
    class Check:
        async def __call__(self, request: Request, config: Config) -> Verdict:
            asyncio.get_running_loop()
            return allow()

    with PluginTester(filter_of(Check())) as tester:
        assert tester.check().allowed


def test_the_response_phase() -> None:
    plugin = Plugin("test")

    @plugin.response
    def after(response: Response, config: Config) -> ResponseVerdict:
        if response.status >= 500:
            return replace(502, {"error": "upstream", "path": response.request.path})
        return keep(
            set_headers={"x-seen": response.headers["x-a"]}, add_headers={"via": "p"}, remove_headers=["server"]
        )

    with PluginTester(plugin) as tester:
        kept = tester.check_response(headers={"X-A": "1"})
        assert not kept.replaced
        assert (kept.headers_set, kept.headers_added, kept.headers_removed) == (
            {"x-seen": "1"},
            [("via", "p")],
            ["server"],
        )
        replaced = tester.check_response(503, path="/x")
        assert replaced.replaced
        assert (replaced.status, replaced.json()) == (502, {"error": "upstream", "path": "/x"})
        assert replaced.headers.get("content-type") == "application/json"
        # It has no opinion on requests.
        assert tester.check().allowed


def test_a_filter_without_response_phase_keeps_responses() -> None:
    with PluginTester(filter_of(lambda request, config: allow())) as tester:
        assert not tester.check_response().replaced


@pytest.mark.parametrize(
    ("register", "description"),
    [
        (
            lambda p: p.filter(lambda request, config: allow()),
            b'\n\x01p\x12\x011\x1a\x01\x01"\x04\x20\x01\x28\x01\x28\x07',
        ),
        (
            lambda p: p.response(lambda response, config: keep()),
            b'\n\x01p\x12\x011\x1a\x01\x01"\x06\x18\x01\x20\x01\x28\x01\x28\x07',
        ),
        (
            lambda p: p.filter(body=True, max_body=9)(lambda request, config: allow()),
            b'\n\x01p\x12\x011\x1a\x01\x01"\x0d\n\x05\x01\x02\x03\x05\x06\x10\x09\x20\x01\x28\x01\x28\x07',
        ),
        (lambda p: p.filter(raises_async), b'\n\x01p\x12\x011\x1a\x01\x01"\x04\x20\x01\x28\x01'),
        (lambda p: p.certificates(lambda request, config: []), b"\n\x01p\x12\x011\x1a\x01\x02"),
    ],
    ids=["filter", "response", "body", "async", "certificates"],
)
def test_a_plugin_describes_itself(register: Callable[[Plugin], object], description: bytes) -> None:
    plugin = Plugin("p", version="1", workers=7)
    register(plugin)
    with PluginTester(plugin) as tester:
        assert tester._call("Lifecycle/Describe", b"") == description


def test_a_function_that_cannot_be_called_is_refused() -> None:
    plugin = Plugin("test")
    with pytest.raises(TypeError, match=r"filter `check` must accept \(request, config\)"):

        @plugin.filter  # type: ignore[type-var]
        def check(request: Request) -> Verdict:
            return allow()


def test_there_is_one_filter() -> None:
    plugin = filter_of(raises)
    with pytest.raises(ValueError, match="already has the filter `raises`"):
        plugin.filter(raises_async)


@pytest.mark.parametrize("options", [{"max_body": 5}, {"body": True, "max_body": -1}])
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="max_body"):
        Plugin("test").filter(**options)


@pytest.mark.parametrize("arguments", [{"name": ""}, {"name": "x", "workers": 0}])
def test_impossible_plugins_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a plugin "):
        Plugin(**arguments)


def test_calls_for_another_configuration_are_refused() -> None:
    with PluginProcess(FILTER_PROGRAM) as plugin:
        assert plugin.connect().check(config_hash="1").allowed
        answer = plugin.call(f"{FILTER}/CheckRequest", request(config_hash="1"))
        assert filter_pb2.CheckRequestResponse.FromString(answer).config_hash == "1"
        assert plugin.check(config_hash="").allowed
        with pytest.raises(grpc.RpcError) as refused:
            plugin.check(config_hash="2")
        assert code(refused) is grpc.StatusCode.FAILED_PRECONDITION
        assert "in force is 1, and the call is for 2" in str(refused.value)


def test_calls_before_the_configuration_are_refused() -> None:
    with PluginProcess(FILTER_PROGRAM) as plugin:
        plugin.connect_unconfigured()
        assert plugin.call(f"{LIFECYCLE}/Describe")
        with pytest.raises(grpc.RpcError) as refused:
            plugin.call(f"{FILTER}/CheckRequest", request(config_hash=""))
        assert code(refused) is grpc.StatusCode.FAILED_PRECONDITION


def test_garbage_is_refused() -> None:
    with PluginProcess(FILTER_PROGRAM) as plugin:
        with pytest.raises(grpc.RpcError) as refused:
            plugin.connect().call(f"{FILTER}/CheckRequest", b"\xff\xff")
        assert code(refused) is grpc.StatusCode.UNKNOWN
        assert plugin.check().allowed


def test_a_call_without_a_request_is_refused() -> None:
    with PluginProcess(FILTER_PROGRAM) as plugin:
        message = filter_pb2.CheckRequestRequest.FromString(request())
        message.ClearField("request")
        with pytest.raises(grpc.RpcError, match="no request") as refused:
            plugin.connect().call(f"{FILTER}/CheckRequest", message.SerializeToString())
        assert code(refused) is grpc.StatusCode.INVALID_ARGUMENT


def test_services_that_are_not_registered_are_not_there() -> None:
    with PluginProcess(FILTER_PROGRAM) as plugin:
        with pytest.raises(grpc.RpcError) as refused:
            next(plugin.connect().stream("palisade.plugin.v1.Certificates/Watch"))
        assert code(refused) is grpc.StatusCode.UNIMPLEMENTED


def test_health() -> None:
    with PluginProcess(FILTER_PROGRAM) as plugin:
        plugin.connect_unconfigured()
        assert plugin.call(f"{HEALTH}/Check") == b"\x08\x01"
        assert plugin.call(f"{HEALTH}/Check", b"\n\x06plugin") == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as refused:
            plugin.call(f"{HEALTH}/Check", b"\n\x05other")
        assert code(refused) is grpc.StatusCode.NOT_FOUND
        assert next(plugin.stream(f"{HEALTH}/Watch", b"\n\x05other")) == b"\x08\x03"


def code(refused: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    error: Any = refused.value
    status: grpc.StatusCode = error.code()
    return status
