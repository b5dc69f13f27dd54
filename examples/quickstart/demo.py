"""Runs palisade with a filter in Python and a certificate loader in Java, and shows what they do.

It takes free ports and a directory of its own for everything, ends by itself and leaves nothing behind. The exit status
is 0 only if every step turned out as it should.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import upstream
from proxy_process import Failure, Proxy, ensure, get, get_tls, new_certificate, relocate, until

step = 0


def show(what: str, text: str) -> None:
    global step
    step += 1
    print(f"{step}. {what:<9} {text}", flush=True)


def seen(text: str, name: str) -> str:
    """The value of a header in what the upstream tells."""
    values = [line.partition(": ")[2] for line in text.splitlines() if line.startswith(f"{name}: ")]
    ensure(len(values) == 1, f"the upstream should have seen `{name}` once, but it says:\n{text}")
    return values[0]


def both_verdicts(proxy: Proxy) -> None:
    plain = proxy.address("plain")
    ensure((status := get(plain).status) == 403, f"without the header, the answer is {status}, not 403")
    ensure((status := get(plain, "/", {"User": "admin"}).status) == 200, f"with it, it is {status}, not 200")


def run(scratch: Path) -> None:
    requests: list[str] = []

    class CountingUpstream(upstream.QuietUpstream):
        def answer(self) -> None:
            requests.append(self.path)
            super().answer()

        do_GET = answer

    server = upstream.listen(0, CountingUpstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    configuration = relocate(HERE / "palisade.yaml", scratch, {8080: 0, 8443: 0, 9000: server.server_port})
    certificates = configuration.parent / "certs"
    first = new_certificate(certificates, "first.example")
    runtime = scratch / "run"
    runtime.mkdir(mode=0o700)
    began = time.monotonic()
    with Proxy(configuration, runtime) as proxy:
        try:
            steps(proxy, certificates, first, requests, began)
        except (Failure, OSError) as failure:
            raise Failure(f"{failure}\nthe last lines of its log:\n{proxy.log_tail()}") from failure
    server.shutdown()
    server.server_close()


def steps(proxy: Proxy, certificates: Path, first: Path, requests: list[str], began: float) -> None:
    proxy.wait_ready()
    auth, certs = proxy.plugin("auth"), proxy.plugin("certs")
    plain, secure = proxy.address("plain"), proxy.address("secure")
    show("started", f"palisade (process {proxy.pid}) started auth in Python ({auth['pid']}) and certs in Java "
         f"({certs['pid']}); ready after {time.monotonic() - began:.1f} s")

    denied = get(plain, "/hello")
    ensure(denied.status == 403, f"without the header, the answer is {denied.status}, not 403")
    ensure(denied.text == "forbidden\n", f"the refusal should be the plugin's own, but is {denied.text!r}")
    ensure(not requests, "the refused request reached the upstream")
    show("403", f"GET http://{plain[0]}:{plain[1]}/hello: refused by the Python plugin, never seen by the upstream")

    allowed = get(plain, "/hello", {"User": "admin"})
    ensure(allowed.status == 200, f"with `User: admin`, the answer is {allowed.status}, not 200")
    ensure(requests == ["/hello"], f"the upstream should have got /hello, but got {requests}")
    show("200", f"the same with `User: admin`: the upstream got user: {seen(allowed.text, 'user')}, "
         f"x-forwarded-for: {seen(allowed.text, 'x-forwarded-for')}, x-request-id: {seen(allowed.text, 'x-request-id')}")

    https = get_tls(secure, first)
    ensure(https.answer.status == 200, f"over TLS, the answer is {https.answer.status}, not 200")
    ensure(https.common_name == "first.example", f"the certificate is that of {https.common_name}")
    show("HTTPS", f"https://localhost:{secure[1]}/ says 200 over {https.version} with CN={https.common_name}, the Java "
         "plugin's certificate")

    written = time.monotonic()
    second = new_certificate(certificates, "second.example")
    trusted = certificates / "both.pem"
    trusted.write_bytes(first.read_bytes() + second.read_bytes())
    until("the new certificate is served", lambda: get_tls(secure, trusted).common_name == "second.example")
    took = time.monotonic() - written
    ensure(proxy.plugin("certs")["pid"] == certs["pid"], "the plugin was started again, which rotation should not need")
    show("rotation", f"its files were replaced; {took:.1f} s later new connections got CN=second.example, none failed, "
         "nothing was restarted")

    handled = len(requests)
    os.kill(auth["pid"], signal.SIGKILL)
    killed = time.monotonic()

    def back() -> bool:
        now = proxy.plugin("auth")
        return bool(now["state"] == "serving" and now["pid"] != auth["pid"])

    until("the killed plugin serves again", back)
    took = time.monotonic() - killed
    now = proxy.plugin("auth")
    ensure(now["restarts"] == 1, f"the status should say 1 restart, but says {now['restarts']}")
    ensure(len(requests) == handled, "a request was sent in between")
    both_verdicts(proxy)
    show("kill -9", f"of auth ({auth['pid']}): {took:.1f} s later it served as {now['pid']}, without any request in between "
         f"(status: {now['restarts']} restart); 403 and 200 as before")

    asked = time.monotonic()
    processes = proxy.stop()
    show("SIGTERM", f"palisade ended with status 0 after {time.monotonic() - asked:.1f} s; none of its {len(processes)} "
         "processes is left")


def ask_to_end(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, ask_to_end)
    print("Palisade: one proxy, two plugins in two languages.", flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="palisade-demo-") as scratch:
            run(Path(scratch))
    except (Failure, OSError) as failure:
        print(f"FAILED after step {step}: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print("Every step held. By hand: examples/quickstart/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
