"""The kinds of work that are compared, and who does them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import peers
from peers import Place, Proxy

PROXY_CORES, OTHER_CORES = {0}, {1}


@dataclass(frozen=True)
class Scenario:
    """One kind of work, and who does it."""

    name: str
    title: str
    proxies: Callable[[Place, int], list[Proxy]]
    connections: int = 64
    path: str = "/hello"
    expected: int = 200
    user: str = "admin"
    upload: int = 0
    http2: bool = False
    tls: bool = False
    # Nothing but TLS handshakes: `full` or `resumed`.
    handshakes: str = ""
    workers: int = 1
    pinned: bool = True
    # Of the requests/s that the proxy did in a closed loop just before; open loop.
    share: float = 0
    idle: int = 0
    # For how many seconds a proxy is warmed up until its figures settle: at least and at most, if no JIT compiler is at
    # work. A second if not written.
    settles: tuple[float, float] = (1, 1)
    # Seconds of each round, in the place of those of the run.
    seconds: float = 0
    smoke: bool = False

    @property
    def proxy_cores(self) -> set[int] | None:
        return PROXY_CORES if self.pinned else None

    @property
    def other_cores(self) -> set[int] | None:
        return OTHER_CORES if self.pinned else None


def plain(place: Place, upstream: int) -> list[Proxy]:
    proxies = [peers.palisade(place, upstream, None), peers.nginx_proxy(place, upstream, None)]
    if peers.there("haproxy"):
        proxies.append(peers.haproxy(place, upstream))
    return proxies + envoy(place, upstream, None)


def rust(place: Place, upstream: int) -> list[Proxy]:
    proxies = [peers.palisade(place, upstream, "rust"), peers.nginx_proxy(place, upstream, "http")]
    return proxies + envoy(place, upstream, "rust")


def python(place: Place, upstream: int) -> list[Proxy]:
    proxies = [peers.palisade(place, upstream, plugin) for plugin in ("python", "python-async")]
    return proxies + envoy(place, upstream, "python")


def java(place: Place, upstream: int) -> list[Proxy]:
    return [peers.palisade(place, upstream, "java"), *envoy(place, upstream, "java")]


def mosn(place: Place, upstream: int) -> list[Proxy]:
    go = ["mosn-go"] if peers.GO_PLUGINS.joinpath("header-auth").exists() else []
    return [peers.palisade(place, upstream, plugin) for plugin in ["mosn-python", *go]]


def envoy(place: Place, upstream: int, auth: str | None) -> list[Proxy]:
    return [peers.envoy(place, upstream, auth)] if peers.envoy_program() else []


def by_headers(place: Place, upstream: int) -> list[Proxy]:
    # Two are there anyway: `host` and `user`.
    return [peers.palisade(place, upstream, plugin, f"palisade {count} headers{', a decision' if plugin else ''}",
                           headers=count - 2)
            for plugin in (None, "rust") for count in (5, 20, 50, 100)]


def by_routes(place: Place, upstream: int) -> list[Proxy]:
    return [peers.palisade(place, upstream, None, f"palisade {count} routes", routes=count)
            for count in (1, 100, 1_000, 10_000)]


def by_idle_plugins(place: Place, upstream: int) -> list[Proxy]:
    return [peers.palisade(place, upstream, None, f"palisade {count} idle plugins", idle_plugins=count)
            for count in (1, 10, 100)]


def by_filters(place: Place, upstream: int) -> list[Proxy]:
    return [peers.palisade(place, upstream, "rust" if count else None, f"palisade {count} filters", filters=count)
            for count in (0, 1, 2, 3, 5)]


def by_connections(place: Place, upstream: int) -> list[Proxy]:
    return [peers.palisade(place, upstream, None, f"palisade {count} connections", connections=count)
            for count in (1, 8, 64, 512, 2_048)]


def by_parts(place: Place, upstream: int) -> list[Proxy]:
    return [peers.palisade(place, upstream, plugin, label, headers=48)
            for plugin, label in (("rust-whole", "palisade all parts of them"), ("rust-line", "palisade the request line"))]


def by_instances(place: Place, upstream: int) -> list[Proxy]:
    return [peers.palisade(place, upstream, "python-works", f"palisade instances {count}", instances=count)
            for count in (1, 2)]


def by_waits(place: Place, upstream: int) -> list[Proxy]:
    return [peers.palisade(place, upstream, plugin, label)
            for plugin, label in (("python-waits", "palisade def"),
                                  ("python-awaits", "palisade async def"))]


def by_max_idle(place: Place, upstream: int) -> list[Proxy]:
    return [peers.palisade(place, upstream, None, f"palisade max_idle {count}", max_idle=count) for count in (64, 1024)]


MIB = 1024 * 1024

SCENARIOS = [
    Scenario("plain", "Plain HTTP/1.1, 64 connections", plain, smoke=True),
    Scenario("auth-rust", "A decision by a Rust process", rust, smoke=True),
    Scenario("auth-python", "A decision by a Python process", python, settles=(2, 6)),
    Scenario("auth-java", "A decision by a Java process", java, settles=(10, 20)),
    Scenario("auth-mosn", "A decision over MOSN's contract", mosn),
    Scenario("deny", "Denied by a Rust process", rust, expected=403, user="guest", smoke=True),
    Scenario("plain-1", "Plain, one connection", plain, connections=1),
    Scenario("auth-1", "A decision by a Rust process, one connection", rust, connections=1),
    Scenario("plain-512", "Plain, 512 connections", plain, connections=512),
    Scenario("auth-512", "A decision by a Rust process, 512 connections", rust, connections=512),
    Scenario("half", "A decision by a Rust process, open loop at half load", rust, share=0.5,
             settles=(2, 2), smoke=True),
    Scenario("http2", "HTTP/2 clients", plain, http2=True, connections=8, smoke=True),
    Scenario("tls", "TLS, keep-alive", plain, tls=True),
    Scenario("tls-full", "Full TLS handshakes", plain, tls=True, handshakes="full", connections=16, smoke=True),
    Scenario("tls-resumed", "Resumed TLS handshakes", plain, tls=True, handshakes="resumed", connections=16,
             smoke=True),
    Scenario("down-64k", "Responses of 64 KiB", plain, path="/64k"),
    Scenario("down-1m", "Responses of 1 MiB", plain, path="/1m", connections=16),
    Scenario("up-64k", "Requests of 64 KiB", plain, path="/take", upload=64 * 1024, smoke=True),
    Scenario("up-1m", "Requests of 1 MiB", plain, path="/take", upload=MIB, connections=16),
    Scenario("two", "Plain, two workers", plain, workers=2, pinned=False),
    Scenario("two-auth", "A decision by a Rust process, two workers", rust, workers=2, pinned=False),
    Scenario("idle", "Idle keep-alive connections", plain, idle=10_000, smoke=True),
    Scenario("headers", "Growth with header fields", by_headers, seconds=1),
    Scenario("routes", "Growth with routes", by_routes, seconds=1),
    Scenario("idle-plugins", "Growth with plugins that no route names", by_idle_plugins, seconds=1),
    Scenario("filters", "Growth with filters, a Rust process each", by_filters, seconds=1, smoke=True),
    Scenario("connections", "Growth with connections", by_connections, seconds=1),
    Scenario("tuning-parts", "A decision about requests of 50 header fields", by_parts, seconds=1),
    Scenario("tuning-instances", "A Python filter that works for 0.2 ms", by_instances, pinned=False,
             settles=(2, 4), seconds=1),
    Scenario("tuning-waits", "A Python filter that waits for 10 ms", by_waits, settles=(2, 4), seconds=1,
             smoke=True),
    Scenario("tuning-idle", "Plain, 512 connections", by_max_idle, connections=512, seconds=1),
]
