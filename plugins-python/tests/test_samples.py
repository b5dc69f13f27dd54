"""The samples do what they say, as processes and in the tester."""

from __future__ import annotations

from pathlib import Path

import cert_loader
import header_auth
import pytest
from conftest import Issue
from harness import CERTIFICATES, PluginProcess

from palisade import ConfigError, Headers, _host_wire
from palisade.testing import PluginTester

SAMPLES = Path(__file__).resolve().parent.parent / "samples"


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ([("user", "admin")], True),
        ([("User", "admin")], True),
        ([], False),
        ([("user", "bob")], False),
        ([("user", "Admin")], False),
        ([("user", "admin"), ("user", "bob")], False),
        ([("user", "bob"), ("user", "admin")], False),
    ],
)
def test_header_auth(headers: list[tuple[str, str | bytes]], allowed: bool) -> None:
    with PluginTester(header_auth.plugin) as tester:
        verdict = tester.check("/", headers=headers)
        assert verdict.allowed is allowed
        assert verdict.status == (None if allowed else 403)


def test_header_auth_with_another_header() -> None:
    with PluginTester(header_auth.plugin, {"header": "X-Team", "value": "core"}) as tester:
        assert tester.check(headers={"x-team": "core"}).allowed
        assert tester.check(headers={"user": "admin"}).text == "forbidden\n"


def test_header_auth_as_a_process() -> None:
    with PluginProcess(SAMPLES / "header_auth.py") as plugin:
        assert plugin.connect({"value": "root"}).check(headers=Headers({"user": "root"})).allowed
        assert not plugin.check(headers=Headers({"user": "admin"})).allowed
        plugin.terminate()
        assert plugin.wait() == 0


def test_cert_loader_as_a_process(issue: Issue, tmp_path: Path) -> None:
    issue("a.example")
    with PluginProcess(SAMPLES / "cert_loader.py") as plugin:
        plugin.connect({"dir": str(tmp_path), "server_names": ["a.example"]})
        changes = plugin.stream(f"{CERTIFICATES}/Watch", _host_wire.encode_watch([], "1"))
        [before] = _host_wire.decode_watch(next(changes))
        assert before.chain == (tmp_path / "cert.pem").read_bytes()
        assert before.server_names == ("a.example",)
        issue("a.example")
        [after] = _host_wire.decode_watch(next(changes))
        assert after.chain == (tmp_path / "cert.pem").read_bytes()
        assert after.private_key == (tmp_path / "key.pem").read_bytes()
        plugin.terminate()
        assert plugin.wait() == 0
        assert "PRIVATE KEY" not in plugin.log


def test_cert_loader_with_files(issue: Issue, tmp_path: Path) -> None:
    issue("a.example")
    files = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    with PluginTester(cert_loader.plugin, files) as tester:
        assert len(tester.certificates()) == 1
    (tmp_path / "key.pem").chmod(0o644)
    with PluginTester(cert_loader.plugin, {**files, "allow_open_keys": True}) as tester:
        assert len(tester.certificates()) == 1
    with pytest.raises(ConfigError, match="allow_open_keys"):
        PluginTester(cert_loader.plugin, {**files, "allow_open_keys": "no"}).__enter__()


def test_cert_loader_needs_to_know_where() -> None:
    with pytest.raises(ConfigError, match="name a `dir`"):
        PluginTester(cert_loader.plugin, {"cert": "/cert.pem"}).__enter__()
