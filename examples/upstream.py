"""A small HTTP server that tells what it got: the upstream behind every example.

    python3 upstream.py [PORT]        # 8080 if not said otherwise; on 127.0.0.1

It answers with the request line, the headers and the size of the body, as plain text.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "upstream"
    sys_version = ""

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        lines = [f"{self.command} {self.path}"]
        lines += [f"{name.lower()}: {value}" for name, value in self.headers.items()]
        lines += [f"(a body of {len(body)} bytes)"] if body else []
        text = "".join(f"{line}\n" for line in lines).encode("latin-1")
        self.send_response(200)
        self.send_header("content-type", "text/plain; charset=iso-8859-1")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer


class QuietUpstream(Upstream):
    def log_message(self, *_: object) -> None:
        """Does nothing: for scripts, whose output is their own."""


def listen(port: int, handler: type[Upstream] = Upstream) -> ThreadingHTTPServer:
    """Opens the port on 127.0.0.1 (0: a free one); ``serve_forever()`` of what it returns takes requests."""
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def main(arguments: list[str]) -> int:
    if len(arguments) > 1 or not all(argument.isdecimal() for argument in arguments):
        print("usage: upstream.py [PORT]", file=sys.stderr)
        return 2
    try:
        server = listen(int(arguments[0]) if arguments else 8080)
    except OSError as error:
        print(f"upstream.py: can't open the port: {error.strerror}", file=sys.stderr)
        return 1
    with server:
        print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
