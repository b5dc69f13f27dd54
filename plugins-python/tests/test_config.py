"""The configuration: what arrives, and refusing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from palisade import Config, ConfigError, Plugin, Request, Verdict, allow, deny
from palisade.testing import CallFailed, PluginTester


def validated_by(function: Callable[..., Any]) -> Plugin:
    plugin = Plugin("test")
    plugin.configure(function)

    @plugin.filter
    def check(request: Request, config: Config) -> Verdict:
        return deny(403, config)

    return plugin


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"text": "é", "yes": True, "no": False, "nothing": None},
        {"int": 3, "negative": -3, "zero": 0, "large": 2**53, "half": 0.5, "huge": 1e300},
        {"list": [], "nested": [[1, {"a": [None]}]], "map": {"": {"a.b": 1}}},
    ],
)
def test_a_configuration_arrives_as_it_was_written(config: Config) -> None:
    seen: list[Config] = []
    with PluginTester(validated_by(seen.append), config):
        pass
    assert seen == [config]
    assert repr(sorted(seen[0].items(), key=str)) == repr(sorted(config.items(), key=str))


def raising(config: Config) -> None:
    if config.get("bad"):
        raise ConfigError("must be a list of names", path="allow")


async def raising_async(config: Config) -> None:
    raising(config)


def yielding(config: Config) -> Any:
    if config.get("bad"):
        yield ConfigError("must be a list of names", path="allow")
        yield ConfigError("second")


def returning(config: Config) -> Any:
    return list(yielding(config))


def yielding_then_raising(config: Config) -> Any:
    raising(config)
    yield from ()


@pytest.mark.parametrize("function", [raising, raising_async, yielding, returning, yielding_then_raising])
def test_a_configuration_is_refused_and_the_last_one_stays(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError):
        PluginTester(validated_by(function), {"bad": 1}).__enter__()
    with PluginTester(validated_by(function), {"good": 1}) as tester:
        with pytest.raises(ConfigError, match="^allow: must be a list of names$") as refused:
            tester.configure({"bad": 1})
        assert (refused.value.path, refused.value.message) == ("allow", "must be a list of names")
        assert tester.check().json() == {"good": 1}
        tester.configure({"better": 2})
        assert tester.check().json() == {"better": 2}


def test_every_problem_is_told() -> None:
    with PluginTester(validated_by(yielding)) as tester:
        from palisade import _host_wire

        answer = tester._call("Lifecycle/Configure", _host_wire.encode_configure({"bad": True}, "2"))
        assert [str(it) for it in _host_wire.decode_configure(answer)] == ["allow: must be a list of names", "second"]


@pytest.mark.parametrize("function", [lambda config: config["missing"], lambda config: ["not an error"]])
def test_a_check_with_a_bug_fails_the_call(function: Callable[..., Any]) -> None:
    with pytest.raises(CallFailed, match="INTERNAL: configuration check `<lambda>` raised"):
        PluginTester(validated_by(function)).__enter__()


def test_a_plugin_runs_with_several_configurations_at_a_time() -> None:
    plugin = validated_by(raising)
    with PluginTester(plugin, {"n": 1}) as one, PluginTester(plugin, {"n": 2}) as two:
        assert (one.check().json(), two.check().json()) == ({"n": 1}, {"n": 2})


def test_calls_keep_the_configuration_that_they_began_with() -> None:
    plugin = Plugin("test")
    plugin.filter(lambda request, config: allow(set_headers={"n": str(config["n"])}))
    with PluginTester(plugin, {"n": 1}) as tester:
        stale = tester._generation
        tester.configure({"n": 2})
        assert tester.check().headers_set == {"n": "2"}
        tester._generation = stale
        with pytest.raises(CallFailed, match="FAILED_PRECONDITION"):
            tester.check()
