"""The repository's documents: the contract's plugin runs as it stands there, made with grpcio alone, and its tables are
complete; what the others show and name exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from harness import CERTIFICATES, DEADLINE, FILTER, HEALTH, LIFECYCLE, PluginProcess, outcome, request

from palisade import Headers, _host_wire
from palisade._generated import lifecycle_pb2

REPOSITORY = Path(__file__).resolve().parents[2]
PROTO = REPOSITORY / "plugin-proto" / "proto"
DOCUMENT = (REPOSITORY / "docs" / "plugin-contract.md").read_text()

SHUTDOWN = "plugin.GRPCController/Shutdown"


def block(language: str, begin: str) -> str:
    """The code block of a language that begins with a text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    [code] = [code for code in blocks if code.startswith(begin)]
    return str(code)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin, beside what the document's command makes of the .proto files."""
    directory = tmp_path_factory.mktemp("contract")
    (directory / "proto").symlink_to(PROTO)
    install, generate = re.findall(r"^\$ (.*)$", block("console", "$ pip install"), re.MULTILINE)
    assert install == "pip install grpcio grpcio-tools"
    assert generate.startswith("python3 -m grpc_tools.protoc ")
    subprocess.run(
        generate.replace("python3", '"$PYTHON"', 1),
        shell=True,
        check=True,
        cwd=directory,
        env={**os.environ, "PYTHON": sys.executable},
        timeout=DEADLINE,
    )
    # The document says to use an environment without the SDK. This one has it, and a folder without this file would
    # be hidden by it.
    (directory / "palisade" / "__init__.py").touch()
    path = directory / "auth.py"
    path.write_text(block("python", "# auth.py\n"))
    return path


def test_the_plugin_serves_and_ends_when_asked(program: Path) -> None:
    with PluginProcess(program) as plugin:
        plugin.connect_unconfigured()

        described = lifecycle_pb2.DescribeResponse.FromString(plugin.call(f"{LIFECYCLE}/Describe"))
        assert described.contracts == [lifecycle_pb2.CONTRACT_FILTER]
        assert described.filter.request_parts == [lifecycle_pb2.REQUEST_PART_HEADERS]
        for absent in (f"{HEALTH}/Check", f"{CERTIFICATES}/Watch"):
            with pytest.raises(grpc.RpcError) as error:
                plugin.call(absent)
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED

        configure = f"{LIFECYCLE}/Configure"
        [problem] = _host_wire.decode_configure(plugin.call(configure, _host_wire.encode_configure({}, "0")))
        assert str(problem) == "allow: must be a list of users"
        config = _host_wire.encode_configure({"allow": ["admin"]}, "1")
        assert _host_wire.decode_configure(plugin.call(configure, config)) == []

        allowed = plugin.check("/x", Headers({"x-user": "admin"}))
        assert allowed.allowed and allowed.headers_set == {"x-auth": "ok"}
        for headers in (Headers(), Headers({"x-user": "mallory"}), Headers([("x-user", "admin"), ("x-user", "x")])):
            denied = plugin.check("/x", headers)
            assert (denied.status, denied.text) == (403, "who are you?")
        plugin.wait_for_log("[WARN] refused /x\n")
        with pytest.raises(grpc.RpcError) as error:
            plugin.check(config_hash="2")
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION

        answer = plugin.future(f"{FILTER}/CheckRequest", request(headers=Headers({"x-user": "admin"})))
        assert outcome(answer.result()).allowed
        plugin.future(SHUTDOWN).exception()
        assert plugin.wait() == 0


def test_the_plugin_prints_its_line_and_ends_on_sigterm(program: Path) -> None:
    with PluginProcess(program) as plugin:
        assert plugin.read_line().decode() == f"1|1|unix|{plugin.directory}/auth.sock|grpc\n"
        plugin.terminate()
        assert plugin.wait() == 0


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PALISADE_PLUGIN", None, "this program is a plugin"),
        ("PLUGIN_PROTOCOL_VERSIONS", "2,3", "the host speaks none of this plugin's versions"),
    ],
)
def test_the_plugin_refuses_a_wrong_host(program: Path, variable: str, value: str | None, message: str) -> None:
    with PluginProcess(program, **{variable: value}) as plugin:
        assert plugin.wait() == 1
        assert message in plugin.log
        assert plugin.read_line() == b""


def test_every_field_is_described() -> None:
    fields = set()
    for path in sorted((PROTO / "palisade").rglob("*.proto")):
        field = r"^ +(?:repeated |optional )?[\w.]+(?:<.*>)? (\w+) = \d+;$"
        fields |= set(re.findall(field, path.read_text(), re.MULTILINE))
    # Enum values have no type in front.
    part = r"^ +((?:CONTRACT|REQUEST_PART)_(?!UNSPECIFIED)\w+) = \d+;$"
    parts = set(re.findall(part, read("lifecycle"), re.MULTILINE))
    assert len(fields) > 40 and len(parts) == 8
    assert [name for name in sorted(fields | parts) if not re.search(rf"`(?:\w+\.)?{name}`", DOCUMENT)] == []


def test_every_reason_is_described() -> None:
    source = (REPOSITORY / "proxy" / "src" / "respond.rs").read_text()
    statuses = {"SERVICE_UNAVAILABLE": "503", "GATEWAY_TIMEOUT": "504"}
    reasons = re.findall(r'^    \w+ = "(plugin_\w+)", (\w+),', source, re.MULTILINE)
    assert len(reasons) >= 5
    for reason, status in reasons:
        assert f"| `{reason}` | {statuses[status]} |" in DOCUMENT


def test_every_variable_is_described() -> None:
    source = (REPOSITORY / "plugin-proto" / "src" / "env.rs").read_text()
    names = set(re.findall(r'"(PLUGIN_\w+)"', source))
    assert len(names) >= 4
    assert [name for name in sorted(names) if f"`{name}`" not in DOCUMENT] == []


def read(proto: str) -> str:
    return (PROTO / "palisade" / "plugin" / "v1" / f"{proto}.proto").read_text()


def test_the_tests_that_the_architecture_names_exist() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([\w/-]+\.rs)::(\w+)`", text)
    assert len(named) >= 20
    absent = [f"{path}::{name}" for path, name in named if f"fn {name}(" not in (REPOSITORY / path).read_text()]
    assert absent == []


def test_both_readmes_show_the_same_filter() -> None:
    """That of the SDK is run by test_docs.py."""
    shown = re.search(r"^```python\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert f"```python\n# auth.py\n{shown[1]}```" in (REPOSITORY / "plugins-python" / "README.md").read_text()
