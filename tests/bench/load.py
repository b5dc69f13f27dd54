"""What loads a proxy, and the checks that it answers as it should."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

from peers import HERE, Place, Proxy
from processes import before_exec
from scenarios import Scenario

BODIES = {"/64k": b"x" * (64 << 10), "/1m": b"x" * (1 << 20), "/take": b"taken\n", "/hello": b"hello, world\n"}


class Failed(Exception):
    """A proxy does not do the work."""


def check(scenario: Scenario, proxy: Proxy, within: float = 0) -> None:
    """Sees that the proxy does the work: the right answer to the right request, none to the wrong one.

    `within` so many seconds, since the first answer of some plugins takes longer than a proxy waits.
    """
    deadline = time.monotonic() + within
    wanted = (200, BODIES[scenario.path]), 403 if proxy.judged else 200
    while (got := (_ask(scenario, proxy, "admin"), _ask(scenario, proxy, "guest")[0])) != wanted:
        if time.monotonic() > deadline:
            (status, body), other = got
            raise Failed(f"{proxy.name} answers {status} {body[:80]!r} to whom it should let pass, "
                         f"and {other} to whom it should {'deny' if proxy.judged else 'let pass too'}")


def _ask(scenario: Scenario, proxy: Proxy, user: str) -> tuple[int, bytes]:
    """One request, its answer read whole."""
    if scenario.http2:
        scheme = "https" if proxy.tls else "http"
        command = ["curl", "-sk", "--max-time", "30", "--http2-prior-knowledge", "-H", f"user: {user}",
                   "-w", "%{http_version} %{http_code}", f"{scheme}://127.0.0.1:{proxy.port}{scenario.path}"]
        body, _, status = subprocess.run(command, capture_output=True).stdout.rpartition(b"\n")
        version, _, code = status.partition(b" ")
        return int(code) if version == b"2" else 0, body + b"\n"
    if proxy.tls:
        client: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", proxy.port, timeout=30, context=_any_certificate())
    else:
        client = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    try:
        client.request("POST" if scenario.upload else "GET", scenario.path, body=b"x" * scenario.upload or None,
                       headers={"user": user})
        answer = client.getresponse()
        return answer.status, answer.read()
    finally:
        client.close()


def _any_certificate() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def load(scenario: Scenario, proxy: Proxy, place: Place, seconds: float, rate: float = 0) -> dict[str, Any]:
    """What came of it: requests, their times, and how many answers were wrong. `rate` makes an open loop of it."""
    seconds = max(1, round(seconds))
    connections = proxy.connections or scenario.connections
    if scenario.handshakes:
        assert place.certificate
        return _run(scenario, proxy, [str(place.programs / "bench-load"), scenario.handshakes, str(proxy.port),
                                      str(place.certificate / "cert.pem"), str(connections), str(seconds)])
    if rate:
        return _run(scenario, proxy, [str(place.programs / "bench-load"), "rate", str(proxy.port), scenario.path,
                                      scenario.user, str(scenario.expected), str(connections), str(seconds),
                                      f"{rate:.0f}"])
    url = f"{'https' if proxy.tls else 'http'}://127.0.0.1:{proxy.port}{scenario.path}"
    if scenario.http2:
        return _h2load(scenario, proxy, url, connections, seconds, place.scratch / "h2load.log")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(HERE / "wrk.lua"),
               url, "--", "POST" if scenario.upload else "GET", str(scenario.upload), str(proxy.headers), scenario.user]
    size = _response_size(scenario, proxy)
    got = _run(scenario, proxy, command)
    # wrk counts every status from 400 as an error.
    if scenario.expected >= 400:
        got["status_errors"] = got["requests"] - got["status_errors"]
    # Responses that were cut off by the end count in bytes only. Wrong ones are of another size.
    surplus = got["bytes"] - got["requests"] * size
    if not got["status_errors"] and not -connections * size <= surplus <= connections * (size + 65536):
        raise Failed(f"{proxy.name}: {got['bytes']} bytes in {got['requests']} responses of {size}")
    return got


def _run(scenario: Scenario, proxy: Proxy, command: list[str]) -> dict[str, Any]:
    """Of a program that prints its result as a line of JSON."""
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=before_exec(scenario.other_cores))
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines or done.returncode:
        raise Failed(f"{proxy.name}: {command[0]} failed:\n{done.stdout}{done.stderr}")
    return dict(json.loads(lines[-1]))


def _h2load(scenario: Scenario, proxy: Proxy, url: str, connections: int, seconds: float, log: Path) -> dict[str, Any]:
    """Each response's status and time are in its log, the sum of all bodies in its output."""
    log.unlink(missing_ok=True)
    command = ["h2load", f"-c{connections}", "-m8", f"-D{seconds}", "-H", f"user: {scenario.user}",
               f"--log-file={log}", url]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=before_exec(scenario.other_cores))
    rows = [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    times = sorted(int(row[2]) for row in rows)
    data = re.search(r"\((\d+)\) data", done.stdout)
    if not times or not data:
        raise Failed(f"{proxy.name}: h2load failed:\n{done.stdout}{done.stderr}")
    size = len(BODIES[scenario.path])
    if not 0 <= int(data[1]) - len(times) * size <= connections * 8 * size:
        raise Failed(f"{proxy.name}: {data[1]} bytes in {len(times)} bodies of {size}")

    def at(share: float) -> int:
        return times[int(len(times) * share)]

    wrong = sum(row[1] != str(scenario.expected) for row in rows)
    return {"requests": len(rows), "us": seconds * 1e6, "status_errors": wrong, "errors": 0,
            "p50": at(0.5), "p99": at(0.99), "p999": at(0.999)}


def _response_size(scenario: Scenario, proxy: Proxy) -> int:
    """Bytes of one response on a kept connection, head and body."""
    body = b"x" * scenario.upload
    head = f"{'POST' if body else 'GET'} {scenario.path} HTTP/1.1\r\nHost: bench\r\nuser: {scenario.user}\r\n"
    if body:
        head += f"Content-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as plain:
        client = _any_certificate().wrap_socket(plain) if proxy.tls else plain
        answers = client.makefile("rb")
        # The second is like all that follow.
        for _ in range(2):
            client.sendall(head.encode() + b"\r\n" + body)
            size = length = 0
            for line in iter(answers.readline, b"\r\n"):
                if not line:
                    raise Failed(f"{proxy.name} closes the connection")
                size += len(line)
                name, _, value = line.lower().partition(b":")
                if name == b"content-length":
                    length = int(value)
            size += 2 + len(answers.read(length))
    return size
