"""Every example in the documentation runs, and does what the text around it says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import Issue
from harness import PluginProcess

import palisade.testing
from palisade import ConfigError, Headers, Plugin, allow, deny
from palisade.testing import PluginTester

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = {
    match["name"]: match["code"]
    for match in re.finditer(
        r"^```python\n(?P<code># (?P<name>\w+)\.py\n.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
}


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The README's examples, imported as modules that can import each other."""
    modules: dict[str, ModuleType] = {}
    for name, code in EXAMPLES.items():
        path = tmp_path / f"{name}.py"
        path.write_text(code)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        modules[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, modules[name])
        spec.loader.exec_module(modules[name])
    return modules


def test_every_example_is_known() -> None:
    assert set(EXAMPLES) == {"auth", "test_auth", "audit", "certs"}
    assert (ROOT / "README.md").read_text().count("```python\n") == len(EXAMPLES)


def test_the_filter_as_a_process() -> None:
    with PluginProcess(EXAMPLES["auth"]) as plugin:
        plugin.connect({"allow": ["admin"]})
        assert plugin.check("/x", Headers({"x-user": "admin"})).allowed
        assert plugin.check("/x", Headers({"x-user": "mallory"})).status == 403
        plugin.wait_for_log("checking /x\n")


def test_the_filters_test(example: dict[str, ModuleType]) -> None:
    example["test_auth"].test_admins_only()


def test_bodies_responses_validation(example: dict[str, ModuleType]) -> None:
    with PluginTester(example["audit"].plugin, {"words": ["secret"]}) as tester:
        allowed = tester.check(body=b"hello")
        assert allowed.allowed
        assert allowed.headers_removed == ["cookie"]
        assert allowed.response_headers_added == [("set-cookie", "seen=1")]
        denied = tester.check(body=b"a secret")
        assert (denied.status, denied.json()) == (422, {"error": "word", "word": "secret"})
        assert tester.check_response(200).headers_removed == ["server"]
        replaced = tester.check_response(503)
        assert (replaced.status, replaced.text, replaced.headers["retry-after"]) == (502, "try again later", "5")
        with pytest.raises(ConfigError, match="words: must be a list of words"):
            tester.configure({})


def test_certificates(example: dict[str, ModuleType], issue: Issue, tmp_path: Path) -> None:
    issue("a.example")
    with PluginTester(example["certs"].plugin, {"dir": str(tmp_path)}) as tester:
        [certificate] = tester.certificates()
        assert certificate.server_names == ("a.example",)


def test_the_example_of_the_testing_module() -> None:
    plugin = Plugin("x")
    plugin.filter(lambda request, config: allow() if request.headers.get("x-user") in config["allow"] else deny())
    code = re.search(r"^    with .*?\n\n", palisade.testing.__doc__ or "", re.MULTILINE | re.DOTALL)
    assert code is not None
    exec("if True:\n" + code[0], {"PluginTester": PluginTester, "plugin": plugin})
