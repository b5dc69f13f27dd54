"""A plugin that nobody awaits a handshake from: it listens where it is told to, whoever has started it."""

from __future__ import annotations

import signal
import socket

import grpc
import pytest
from harness import DEADLINE, PluginProcess

PROGRAM = """
    import sys

    from palisade import Plugin, allow

    plugin = Plugin("test")

    @plugin.filter
    def check(request, config):
        return allow()

    print("hello")
    plugin.serve({address!r})
"""


def reached(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(DEADLINE)


@pytest.mark.parametrize("cookie", [None, "ON"])
def test_listens_on_a_given_socket_without_a_handshake(cookie: str | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    for _ in range(2):
        # The second time in the place of the socket that the killed one has left.
        with PluginProcess(PROGRAM.format(address=f"unix:{path}"), PALISADE_PLUGIN=cookie) as plugin:
            plugin.wait_for_log("listening on unix:")
            reached(f"unix:{path}")
    with PluginProcess(PROGRAM.format(address=f"unix:{path}"), PALISADE_PLUGIN=cookie) as plugin:
        plugin.wait_for_log("listening on unix:")
        plugin.process.send_signal(signal.SIGTERM if cookie else signal.SIGINT)
        assert plugin.wait() == 0
        # Where a host reads stdout, what is printed goes elsewhere.
        assert plugin.read_line() == (b"" if cookie else b"hello\n")


def test_listens_on_a_given_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with PluginProcess(PROGRAM.format(address=f"tcp:127.0.0.1:{port}"), PALISADE_PLUGIN=None) as plugin:
        plugin.wait_for_log("listening on 127.0.0.1:")
        reached(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["unix:relative", "/run/s", "tcp:127.0.0.1", "tcp:127.0.0.1:http", ""])
def test_an_address_is_checked(address: str) -> None:
    with PluginProcess(PROGRAM.format(address=address), PALISADE_PLUGIN=None) as plugin:
        assert plugin.wait() == 1
        assert "an address is unix:/path or tcp:IP:PORT" in plugin.log


def test_a_path_that_is_too_long_is_refused() -> None:
    with PluginProcess(PROGRAM.format(address="unix:/tmp/" + "x" * 110), PALISADE_PLUGIN=None) as plugin:
        assert plugin.wait() == 1
        assert "bytes, and 107 are allowed" in plugin.log
