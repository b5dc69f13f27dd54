"""How a plugin's process ends: when it is told to, and when there is nobody left to tell it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import grpc
import pytest
from conftest import Issue
from harness import (
    CERTIFICATES,
    DEADLINE,
    FILTER,
    FILTER_PROGRAM,
    HEALTH,
    PluginProcess,
    environment,
    outcome,
    request,
)

WAITING_FILTER = """
    import asyncio
    import pathlib
    import time
    from palisade import Plugin, allow

    plugin = Plugin("waiting")

    @plugin.filter
    {filter}

    plugin.serve()
"""

WAITS_ON_A_THREAD = """
    def check(request, config):
        print("checking")
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
        return allow()
"""

WAITS_ON_THE_LOOP = """
    async def check(request, config):
        print("checking")
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)
        return allow()
"""


@pytest.mark.parametrize("waits", [WAITS_ON_A_THREAD, WAITS_ON_THE_LOOP], ids=["thread", "loop"])
def test_sigterm_lets_calls_in_flight_finish(waits: str) -> None:
    with PluginProcess(WAITING_FILTER.format(filter=waits.strip())) as plugin:
        call = plugin.connect().future(f"{FILTER}/CheckRequest", request())
        plugin.wait_for_log("checking")
        plugin.terminate()
        plugin.wait_for_log("got SIGTERM")
        (plugin.directory / "go").touch()
        assert outcome(call.result()).allowed
        assert plugin.wait() == 0


def test_sigterm_does_not_wait_for_a_filter_that_never_ends() -> None:
    program = "import palisade._process as p; p.GRACE = p._LAST_SECONDS = 0.1\n" + textwrap.dedent(
        WAITING_FILTER.format(filter=WAITS_ON_A_THREAD.strip())
    )
    with PluginProcess(program) as plugin:
        call = plugin.connect().future(f"{FILTER}/CheckRequest", request())
        plugin.wait_for_log("checking")
        plugin.terminate()
        assert plugin.wait() == 1
        assert call.exception() is not None
        assert "a handler still runs" in plugin.log


def test_open_streams_do_not_hold_up_the_stop(issue: Issue, tmp_path: Path) -> None:
    issue("a.example")
    program = f"""
        import palisade._process
        palisade._process.GRACE = 1000000.0
        from palisade import Certificate, Plugin

        plugin = Plugin("streams")

        @plugin.certificates
        def load(request, config):
            return Certificate.read({str(tmp_path / "cert.pem")!r}, {str(tmp_path / "key.pem")!r})

        plugin.serve()
    """
    with PluginProcess(program) as plugin:
        health = plugin.connect().stream(f"{HEALTH}/Watch")
        assert next(health) == b"\x08\x01"  # SERVING
        certificates = plugin.stream(f"{CERTIFICATES}/Watch")
        assert next(certificates)
        plugin.terminate()
        assert next(health) == b"\x08\x02"  # NOT_SERVING
        assert list(health) == []
        assert list(certificates) == []
        assert plugin.wait() == 0


def test_shutdown_over_grpc() -> None:
    with PluginProcess(FILTER_PROGRAM) as plugin:
        plugin.connect().call("plugin.GRPCController/Shutdown")
        assert plugin.wait() == 0
        assert "the host asked to shut down" in plugin.log


def test_sigint_is_the_hosts_affair() -> None:
    with PluginProcess(FILTER_PROGRAM) as plugin:
        plugin.connect()
        plugin.process.send_signal(signal.SIGINT)
        assert plugin.check("/").allowed
        plugin.terminate()
        assert plugin.wait() == 0
        assert "KeyboardInterrupt" not in plugin.log


def test_code_after_serve_runs() -> None:
    with PluginProcess(textwrap.dedent(FILTER_PROGRAM) + "print('cleaned up')\n") as plugin:
        plugin.connect().terminate()
        assert plugin.wait() == 0
        assert plugin.log.endswith("cleaned up\n")


LAUNCHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, *sys.argv[1:]])
print(child.pid, file=sys.stderr, flush=True)
child.wait()
"""


@pytest.mark.parametrize("poll", ["", "import os; del os.pidfd_open\n"], ids=["pidfd", "polling"])
def test_ends_when_the_parent_is_killed(poll: str, tmp_path: Path) -> None:
    """The test holds the plugin's stdout, so that only the parent's death tells."""
    program = tmp_path / "program.py"
    program.write_text(poll + textwrap.dedent(FILTER_PROGRAM))
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(program)],
        env=environment(PLUGIN_UNIX_SOCKET_DIR=None),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        pid = int(parent.stderr.readline())
        assert parent.stdout.readline().startswith(b"1|1|tcp|")
        child = os.pidfd_open(pid)
        parent.kill()
        assert_ends(child)
        assert b"the host is gone" in parent.stderr.read()


def test_ends_when_the_host_behind_a_launcher_is_gone(tmp_path: Path) -> None:
    """The launcher lives on, as ``sh -c`` does; the host's end of stdout is closed."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(FILTER_PROGRAM))
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(program)],
        env=environment(PLUGIN_UNIX_SOCKET_DIR=None),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as launcher:
        assert launcher.stdout is not None and launcher.stderr is not None
        launcher.stderr.readline()
        assert launcher.stdout.readline().startswith(b"1|1|tcp|")
        launcher.stdout.close()
        assert launcher.wait(DEADLINE) == 0
        assert b"closed this plugin's stdout" in launcher.stderr.read()


def test_ends_when_the_host_died_while_the_plugin_started() -> None:
    with PluginProcess("import sys; sys.stdin.read()\n" + textwrap.dedent(FILTER_PROGRAM)) as plugin:
        assert plugin.process.stdout is not None
        plugin.process.stdout.close()
        assert plugin.wait() == 1
        assert "cannot write the handshake to stdout" in plugin.log


def test_ends_at_once_with_calls_in_flight_when_the_host_is_gone() -> None:
    program = WAITING_FILTER.format(filter=WAITS_ON_THE_LOOP.strip())
    with PluginProcess(program) as plugin:
        call = plugin.connect().future(f"{FILTER}/CheckRequest", request())
        plugin.wait_for_log("checking")
        assert plugin.process.stdout is not None
        plugin.process.stdout.close()
        assert plugin.wait() == 0
        assert isinstance(call.exception(), grpc.RpcError)


def test_serve_belongs_on_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    from palisade import Plugin, _process, allow

    monkeypatch.setattr(_process, "_host", _process.Host(stdout=1, pid=os.getppid()))
    plugin = Plugin("threaded")
    plugin.filter(lambda request, config: allow())
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            plugin.serve()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(DEADLINE)
    assert "main thread" in str(errors[0])


def assert_ends(descriptor: int) -> None:
    try:
        assert select.select([descriptor], [], [], DEADLINE)[0], "the process still runs"
    finally:
        os.close(descriptor)
