"""How a plugin's process begins: cookie, handshake line, and a stdout that nothing else gets into."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from harness import FILTER_PROGRAM, LIFECYCLE, PluginProcess, environment

from palisade import Headers
from palisade._generated import lifecycle_pb2


def test_explains_itself_when_started_by_hand() -> None:
    with PluginProcess(FILTER_PROGRAM, PALISADE_PLUGIN=None) as plugin:
        assert plugin.wait() == 1
        assert plugin.read_line() == b""
        assert "program.py: this program is a plugin, and is meant to be started by palisade." in plugin.log
        assert "palisade run -c palisade.yaml" in plugin.log
        assert "palisade.testing" in plugin.log


def test_another_cookie_is_no_cookie() -> None:
    with PluginProcess(FILTER_PROGRAM, PALISADE_PLUGIN="off") as plugin:
        assert plugin.wait() == 1


@pytest.mark.parametrize("versions", ["2,7", "", "one", "11"])
def test_refuses_a_host_that_does_not_offer_version_1(versions: str) -> None:
    with PluginProcess(FILTER_PROGRAM, PLUGIN_PROTOCOL_VERSIONS=versions) as plugin:
        assert plugin.wait() == 1
        assert plugin.read_line() == b""
        assert f"protocol versions '{versions}'" in plugin.log


def test_refuses_a_socket_path_that_is_too_long() -> None:
    with PluginProcess(FILTER_PROGRAM, PLUGIN_UNIX_SOCKET_DIR="/tmp/" + "x" * 90) as plugin:
        assert plugin.wait() == 1
        assert plugin.read_line() == b""
        assert "bytes, and 107 are allowed" in plugin.log
        assert "Traceback" not in plugin.log


def test_refuses_a_socket_directory_that_is_not_there() -> None:
    with PluginProcess(FILTER_PROGRAM, PLUGIN_UNIX_SOCKET_DIR="/nonexistent") as plugin:
        assert plugin.wait() == 1
        assert plugin.read_line() == b""
        assert "cannot listen on unix:/nonexistent/" in plugin.log


def test_a_plugin_without_functions_says_so() -> None:
    with PluginProcess('from palisade import Plugin; Plugin("empty").serve()') as plugin:
        assert plugin.wait() == 1
        assert "register one with @plugin.filter" in plugin.log


@pytest.mark.parametrize("versions", ["1", "3,1,2", None])
def test_prints_one_line_for_a_unix_socket(versions: str | None) -> None:
    with PluginProcess(FILTER_PROGRAM, PLUGIN_PROTOCOL_VERSIONS=versions) as plugin:
        line = plugin.read_line()
        directory = re.escape(os.fsencode(plugin.directory))
        assert re.fullmatch(rb"1\|1\|unix\|" + directory + rb"/plugin-[0-9a-f]{8}\.sock\|grpc\n", line)
        assert Path(os.fsdecode(line.split(b"|")[3])).is_socket()
        plugin.terminate()
        assert plugin.wait() == 0
        assert plugin.read_line() == b""


def test_leaves_no_socket_behind() -> None:
    with PluginProcess(FILTER_PROGRAM) as plugin:
        plugin.connect().terminate()
        assert plugin.wait() == 0
        assert [path.name for path in plugin.directory.iterdir()] == ["program.py"]


def test_prints_a_loopback_port_without_a_socket_directory() -> None:
    with PluginProcess(FILTER_PROGRAM, PLUGIN_UNIX_SOCKET_DIR=None) as plugin:
        line = plugin.read_line()
        assert re.fullmatch(rb"1\|1\|tcp\|127\.0\.0\.1:[1-9][0-9]*\|grpc\n", line)


def test_serves_over_tcp() -> None:
    with PluginProcess(FILTER_PROGRAM, PLUGIN_UNIX_SOCKET_DIR=None) as plugin:
        assert plugin.connect().check("/").allowed


def test_two_instances_may_share_a_directory() -> None:
    with PluginProcess(FILTER_PROGRAM) as first:
        with PluginProcess(FILTER_PROGRAM, PLUGIN_UNIX_SOCKET_DIR=str(first.directory)) as second:
            assert first.connect().check("/").allowed
            assert second.connect().check("/").allowed


def test_a_directory_may_have_any_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    with PluginProcess(FILTER_PROGRAM) as outer:
        directory = outer.directory / "a b%41 é"
        directory.mkdir()
        with PluginProcess(FILTER_PROGRAM, PLUGIN_UNIX_SOCKET_DIR=str(directory)) as plugin:
            assert plugin.connect().check("/").allowed
            assert len(list(directory.glob("*.sock"))) == 1
            assert plugin.stream_socket().is_socket()


def test_gives_the_socket_to_a_group() -> None:
    with PluginProcess(FILTER_PROGRAM, PLUGIN_UNIX_SOCKET_GROUP=str(os.getgid())) as plugin:
        path = Path(os.fsdecode(plugin.read_line().split(b"|")[3]))
        assert path.stat().st_mode & 0o777 == 0o660
        assert path.stat().st_gid == os.getgid()
        for each in path.parent.glob("plugin-*"):
            assert each.is_socket() and (each.stat().st_mode & 0o777, each.stat().st_gid) == (0o660, os.getgid())


def test_refuses_a_group_that_is_not_there() -> None:
    with PluginProcess(FILTER_PROGRAM, PLUGIN_UNIX_SOCKET_GROUP="no-such-group") as plugin:
        assert plugin.wait() == 1
        assert plugin.read_line() == b""
        assert "PLUGIN_UNIX_SOCKET_GROUP 'no-such-group'" in plugin.log


def test_what_the_program_prints_is_in_the_log() -> None:
    program = """
        import os
        import subprocess

        print("printed while importing")

        from palisade import Plugin, allow

        print("half a line", end="")
        plugin = Plugin("printer")
        print("printed after the plugin was made")
        subprocess.run(["echo", "printed by a child"], check=True)

        @plugin.filter
        def check(request, config):
            print("printed by the filter", request.headers["x-odd"])
            os.write(1, b"written to descriptor 1\\n")
            return allow()

        plugin.serve()
    """
    with PluginProcess(program) as plugin:
        assert plugin.connect().check(headers=Headers({"x-odd": b"\xff\xe9"})).allowed
        plugin.terminate()
        assert plugin.wait() == 0
        assert plugin.read_line() == b""
        for text in (
            "printed while importing\n",
            "half a line",
            "printed after the plugin was made\n",
            "printed by a child\n",
            "printed by the filter \\udcff\\udce9\n",
            "written to descriptor 1\n",
        ):
            assert text in plugin.log


def test_making_a_plugin_leaves_stdout_alone_without_a_host() -> None:
    program = 'from palisade import Plugin; Plugin("x"); print("hello")'
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment(PALISADE_PLUGIN=None), capture_output=True, check=True
    )
    assert (result.stdout, result.stderr) == (b"hello\n", b"")


def test_another_process_cannot_take_the_port() -> None:
    with PluginProcess(FILTER_PROGRAM, PLUGIN_UNIX_SOCKET_DIR=None) as plugin:
        port = plugin.read_line().split(b"|")[3].decode()
        server = grpc.server(ThreadPoolExecutor(1))
        with pytest.raises(RuntimeError):
            server.add_insecure_port(port)


def test_has_a_second_socket_only_where_it_may_choose_a_name() -> None:
    def name(plugin: PluginProcess) -> str:
        answer = plugin.connect_unconfigured().call(f"{LIFECYCLE}/Describe")
        return lifecycle_pb2.DescribeResponse.FromString(answer).filter.stream_socket

    with PluginProcess(FILTER_PROGRAM) as plugin:
        assert plugin.directory.joinpath(name(plugin)).is_socket()
        plugin.terminate()
        assert plugin.wait() == 0
        assert list(plugin.directory.glob("*.many")) == []
    with PluginProcess(FILTER_PROGRAM, PLUGIN_UNIX_SOCKET_DIR=None) as plugin:
        assert name(plugin) == ""
