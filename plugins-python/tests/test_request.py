"""Requests, whose parts are decoded when they are looked at."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from harness import request as encoded
from palisade import Address, Headers, Request, Route, TlsInfo, _host_wire, _wire

MADE = Request(
    method="GET",
    scheme="https",
    authority="example.com:8443",
    path="/a",
    query="b=c",
    has_query=True,
    protocol="HTTP/2.0",
    headers=Headers([("user", "one"), ("user", "two"), ("x", b"\xff")]),
    peer=Address("127.0.0.1", 1),
    local=Address(unix_path="/run/socket"),
    tls=TlsInfo("example.com", "h2", "TLSv1.3", (b"der",)),
    listener="public",
    route=Route("api", {"team": "one"}),
    id="id-1",
    traceparent="00-1",
    tracestate="k=v",
    _body=b"body",
)


def received(request: Request = MADE, body: bytes | None = b"body") -> Request:
    return decoded(_host_wire.encode_check_request(request, body, "1"))


def decoded(message: bytes) -> Request:
    request = _wire.decode_check_request(message).request
    assert request is not None
    return request


def test_a_request_is_what_the_host_has_sent() -> None:
    assert received() == MADE
    assert MADE == received()
    assert repr(received()) == repr(MADE)
    assert received().host == "example.com"
    assert received().body == b"body"
    for field in dataclasses.fields(Request):
        assert getattr(received(), field.name) == getattr(MADE, field.name)


def test_what_the_host_has_not_sent_is_not_there() -> None:
    request = decoded(encoded())
    assert (request.tls, request.route) == (None, None)
    assert len(request.headers) == 0
    with pytest.raises(RuntimeError, match="body"):
        request.body


def test_a_request_can_be_copied_changed_and_sent_to_other_processes() -> None:
    assert dataclasses.replace(received(), path="/b") == dataclasses.replace(MADE, path="/b")
    assert dataclasses.asdict(received())["peer"] == {"ip": "127.0.0.1", "port": 1, "unix_path": ""}
    assert copy.copy(received()) == copy.deepcopy(received()) == MADE
    assert pickle.loads(pickle.dumps(received())) == MADE


def test_a_request_cannot_be_changed() -> None:
    request = received()
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.path = "/b"  # type: ignore[misc]
    assert request.path == "/a"


@pytest.mark.parametrize("request_", [MADE, received()], ids=["made", "received"])
def test_what_a_request_does_not_have_is_an_error(request_: Request) -> None:
    with pytest.raises(AttributeError, match="'Request' object has no attribute 'hedaers'"):
        getattr(request_, "hedaers")
