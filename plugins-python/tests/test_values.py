"""Headers and verdicts as values."""

from __future__ import annotations

from typing import Any

import pytest

from palisade import Address, Headers, allow, deny, keep, replace


def test_headers_are_a_case_insensitive_mapping_of_first_values() -> None:
    headers = Headers([("B", "1"), ("a", "2"), ("b", "3")])
    assert list(headers) == ["b", "a"]
    assert len(headers) == 2
    assert dict(headers) == {"b": "1", "a": "2"}
    assert headers["b"] == headers.get("B") == "1"
    assert headers.get("c") is None
    assert headers.get("c", "x") == headers.get("c", default="x") == "x"
    assert "A" in headers
    assert "c" not in headers
    assert headers.get_all("B") == ["1", "3"]
    assert headers.multi_items() == [("b", "1"), ("a", "2"), ("b", "3")]
    assert headers.raw == (("b", b"1"), ("a", b"2"), ("b", b"3"))
    assert repr(headers) == "Headers([('b', '1'), ('a', '2'), ('b', '3')])"
    with pytest.raises(KeyError):
        headers["c"]


def test_headers_are_equal_if_their_lines_are() -> None:
    assert Headers({"A": "1"}) == Headers([("a", b"1")])
    assert hash(Headers({"A": "1"})) == hash(Headers([("a", b"1")]))
    assert Headers({"a": "1"}) != Headers({"a": "2"})
    assert Headers() != ()


def test_values_that_are_not_text_differ_if_their_bytes_do() -> None:
    one, other = Headers({"a": b"\xe9"}), Headers({"a": b"\xea"})
    assert one["a"] != other["a"]
    assert one["a"].encode("utf-8", "surrogateescape") == b"\xe9"


@pytest.mark.parametrize(
    "headers",
    [
        {"": "x"},
        {"a b": "x"},
        {"a:": "x"},
        {":path": "x"},
        {"naïve": "x"},
        {"a\n": "x"},
        {"a": "x\r\nb: y"},
        {"a": "x\0"},
        {"a": " x"},
        {"a": "x\t"},
        {"a": b"\x7f"},
    ],
    ids=repr,
)
def test_what_cannot_be_a_header_is_refused(headers: dict[str, Any]) -> None:
    for make in (
        lambda: Headers(headers),
        lambda: allow(set_headers=headers),
        lambda: allow(add_response_headers=headers),
        lambda: deny(headers=headers),
        lambda: keep(add_headers=headers),
        lambda: replace(200, headers=headers),
    ):
        with pytest.raises(ValueError):
            make()


@pytest.mark.parametrize("headers", [{"a": 1}, {"a": None}, {1: "a"}, {"a": ["b"]}], ids=repr)
def test_headers_of_other_types_are_refused(headers: Any) -> None:
    with pytest.raises(TypeError, match="is a str"):
        allow(set_headers=headers)


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "connection", "keep-alive", "upgrade"])
def test_headers_that_frame_the_message_are_refused(name: str) -> None:
    for make in (
        lambda: allow(set_headers={name: "x"}),
        lambda: allow(remove_headers=[name]),
        lambda: allow(response_headers={name: "x"}),
        lambda: deny(headers={name: "x"}),
        lambda: keep(remove_headers=[name]),
    ):
        with pytest.raises(ValueError, match="belongs to the proxy"):
            make()


def test_the_host_of_a_request_stays() -> None:
    with pytest.raises(ValueError, match="'host' belongs to the proxy"):
        allow(set_headers={"Host": "b.example"})
    allow(response_headers={"host": "b.example"})


def test_names_to_remove_come_in_a_list() -> None:
    with pytest.raises(TypeError, match=r"in a list: \['cookie'\]"):
        allow(remove_headers="cookie")


def test_pairs_set_every_line_of_a_name() -> None:
    changes = allow(set_headers=[("a", "1"), ("b", "2"), ("A", "3")]).request_headers
    assert [(change.kind, change.name, change.value) for change in changes] == [
        ("set", "a", b"1"),
        ("set", "b", b"2"),
        ("append", "a", b"3"),
    ]


@pytest.mark.parametrize(
    ("body", "content", "content_type"),
    [
        ("who are you?", b"who are you?", b"text/plain; charset=utf-8"),
        ("grüße", "grüße".encode(), b"text/plain; charset=utf-8"),
        ({"error": "é"}, b'{"error":"\\u00e9"}', b"application/json"),
        (["a", 1, None], b'["a",1,null]', b"application/json"),
        ({}, b"{}", b"application/json"),
        (b"\x00\x01", b"\x00\x01", None),
        ("", b"", None),
    ],
)
def test_a_body_brings_its_type(body: Any, content: bytes, content_type: bytes | None) -> None:
    reply = deny(403, body).reply
    assert reply.body == content
    assert reply.headers == ((("content-type", content_type),) if content_type else ())


def test_a_type_of_ones_own_wins() -> None:
    reply = deny(403, {"error": 1}, {"Content-Type": "application/problem+json", "x-a": "1"}).reply
    assert reply.headers == (("content-type", b"application/problem+json"), ("x-a", b"1"))


def test_a_bare_deny_is_403() -> None:
    assert deny().reply.status == 403


@pytest.mark.parametrize("status", [0, 101, 199, 600, -1])
def test_a_status_out_of_range_is_refused(status: int) -> None:
    with pytest.raises(ValueError, match="200 to 599"):
        deny(status)


@pytest.mark.parametrize("status", ["403", 403.0, None, True])
def test_a_status_of_another_type_is_refused(status: Any) -> None:
    with pytest.raises(TypeError, match="a status is an int"):
        replace(status)


@pytest.mark.parametrize("status", [204, 205, 304])
def test_some_statuses_have_no_body(status: int) -> None:
    deny(status)
    with pytest.raises(ValueError, match="has no body"):
        deny(status, "x")


def test_a_body_has_a_limit() -> None:
    deny(403, b"x" * 1024 * 1024)
    with pytest.raises(ValueError, match="1048576 are allowed"):
        deny(403, b"x" * (1024 * 1024 + 1))


@pytest.mark.parametrize("body", [None, 1, object()], ids=["None", "1", "object"])
def test_a_body_of_another_type_is_refused(body: Any) -> None:
    with pytest.raises(TypeError, match="a body is"):
        deny(403, body)


def test_addresses_print_as_one_writes_them() -> None:
    assert str(Address("127.0.0.1", 80)) == "127.0.0.1:80"
    assert str(Address("::1", 80)) == "[::1]:80"
    assert str(Address(unix_path="/run/x")) == "unix:/run/x"
