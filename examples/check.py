"""Runs every example with its own files and sees that it does what its README says.

    python3 check.py [EXAMPLE...]       # such as plugin-filter/rust.yaml; all of them if none is named

One line for each; the exit status is 0 only if all of them passed. Where one of the documented ports is in use, a copy
of the configuration with another port is run, and the line says so.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import upstream
from proxy_process import HERE, ROOT, Failure, Proxy, ensure, get, get_tls, new_certificate, relocate, until

LISTENER = "127.0.0.1:2046"


def decides(proxy: Proxy, _: Path) -> str:
    """A request needs `User: admin`."""
    address = listener(proxy)
    for headers, expected in [({}, 403), ({"User": "guest"}, 403), ({"User": "admin"}, 200)]:
        answer = get(address, "/", headers)
        status = answer.status
        ensure(status == expected, f"with {headers or 'no header'}, the answer is {status}, not {expected}")
    ensure("user: admin\n" in answer.text, f"the upstream did not get the header: {answer.text}")
    return "403 without `User: admin`, 200 with it"


def serves_certificate(proxy: Proxy, certificates: Path) -> str:
    """The certificate is that in the files, also once they were replaced."""
    address = listener(proxy)
    trusted = certificates / "both.pem"
    trusted.write_bytes((certificates / "first.example.pem").read_bytes())
    first = get_tls(address, trusted)
    ensure(first.answer.status == 200, f"the answer is {first.answer.status}, not 200")
    ensure(first.common_name == "first.example", f"the certificate is that of {first.common_name}")
    second = new_certificate(certificates, "second.example")
    trusted.write_bytes(trusted.read_bytes() + second.read_bytes())
    until("the new certificate is served", lambda: get_tls(address, trusted).common_name == "second.example")
    ensure(proxy.plugin("certs")["restarts"] == 0, "the plugin was started again")
    return "200 over TLS with CN=first.example, then with CN=second.example"


CHECKS = {
    "simple-filter": decides,
    "plugin-filter": decides,
    "mosn-compat": decides,
    "cert-loader": serves_certificate,
}

# Ports that a configuration names itself, besides the listener's and the upstream's.
PLUGIN_PORTS = {"mosn-compat": 1234}


def listener(proxy: Proxy) -> tuple[str, int]:
    """The only listener: without a name, it is called by its address."""
    (only,) = proxy.status()["listeners"]
    return proxy.address(only["name"])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def check(example: Path, scratch: Path) -> str:
    folder = example.parent.name
    documented = [2046, 8080] + [port for name, port in PLUGIN_PORTS.items() if name == folder]
    taken = {port: a_free_port() for port in documented if not is_free(port)}
    note = ""
    if taken:
        note = f" (in use, so replaced: {', '.join(f'port {port} by {other}' for port, other in taken.items())})"
    # Certificates are made beside the configuration, so that of a person who tried the example is kept out of it.
    if taken or CHECKS[folder] is serves_certificate:
        example = relocate(example, scratch, taken)
    certificates = example.parent / "certs"
    if CHECKS[folder] is serves_certificate:
        new_certificate(certificates, "first.example")
    runtime = scratch / "run"
    runtime.mkdir(mode=0o700)
    server = upstream.listen(taken.get(8080, 8080), upstream.QuietUpstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Proxy(example, runtime) as proxy:
            try:
                proxy.wait_ready()
                seen = CHECKS[folder](proxy, certificates)
                proxy.stop()
                return seen + note
            except (Failure, OSError) as failure:
                raise Failure(f"{failure}{note}\nthe last lines of its log:\n{proxy.log_tail()}") from failure
    finally:
        server.shutdown()
        server.server_close()


def generated_code_is_current(scratch: Path) -> str:
    """What mosn-compat has was made from the contract, as its README says."""
    folder = HERE / "mosn-compat"
    proto = ROOT / "plugin-proto/proto/mosn"
    command = [str(ROOT / ".venv/bin/python"), "-m", "grpc_tools.protoc", f"-I{proto}"]
    command += [f"--python_out={scratch}", f"--grpc_python_out={scratch}", "plugin.proto"]
    made = subprocess.run(command, capture_output=True, text=True)
    ensure(made.returncode == 0, f"generating failed: {made.stderr}")
    for name in ("plugin_pb2.py", "plugin_pb2_grpc.py"):
        current = (scratch / name).read_text() == (folder / name).read_text()
        ensure(current, f"{name} is not what plugin.proto gives; generate it as the README says")
    return "is what plugin.proto gives"


def ask_to_end(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, ask_to_end)
    paths = [path for name in CHECKS for path in sorted((HERE / name).glob("*.yaml"))]
    examples = {f"{path.parent.name}/{path.name}": path for path in paths}
    if unknown := [name for name in arguments if name not in examples]:
        print(f"no example: {', '.join(unknown)}; there are {', '.join(examples)}", file=sys.stderr)
        return 2
    checks: dict[str, Callable[[Path], str]] = {name: partial(check, path) for name, path in examples.items()}
    if arguments:
        checks = {name: checks[name] for name in arguments}
    else:
        checks["mosn-compat/plugin_pb2.py"] = generated_code_is_current
    failed = 0
    for name, run in checks.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="palisade-example-") as scratch:
            try:
                seen = run(Path(scratch))
            except (Failure, OSError, subprocess.SubprocessError) as failure:
                failed += 1
                print(f"FAILED {name}: {failure}", flush=True)
                continue
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                return 130
        print(f"ok     {name}: {seen} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
