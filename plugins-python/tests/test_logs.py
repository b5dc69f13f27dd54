"""Log lines that hosts of go-plugin understand."""

from __future__ import annotations

import json
import logging
import re

import pytest
from harness import PluginProcess

from palisade._logs import HclogFormatter


def line_of(level: int = logging.INFO, message: str = "hello %s", *arguments: object, **extra: object) -> dict[str, object]:
    record = logging.getLogger("a.b").makeRecord("a.b", level, "file.py", 1, message, arguments, None, extra=extra)
    text = HclogFormatter().format(record)
    assert "\n" not in text
    line: dict[str, object] = json.loads(text)
    return line


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (logging.CRITICAL, "error"),
        (logging.ERROR, "error"),
        (logging.WARNING, "warn"),
        (logging.INFO, "info"),
        (logging.DEBUG, "debug"),
        (5, "trace"),
    ],
)
def test_levels_have_hclogs_names(level: int, name: str) -> None:
    assert line_of(level, "x")["@level"] == name


def test_a_line_has_hclogs_keys() -> None:
    line = line_of(logging.INFO, "hello %s", "wörld\n\udcff", user="u", odd=object)
    assert line["@message"] == "hello wörld\n\udcff"
    assert line["@module"] == "a.b"
    assert line["user"] == "u"
    assert line["odd"] == "<class 'object'>"
    assert set(line) == {"@level", "@message", "@module", "@timestamp", "user", "odd"}


def test_a_timestamp_has_six_digits() -> None:
    record = logging.makeLogRecord({"levelno": logging.INFO, "created": 1136214245.000001})
    assert '"@timestamp": "2006-01-02T15:04:05.000001Z"' in HclogFormatter().format(record)
    record = logging.makeLogRecord({"levelno": logging.INFO, "created": 1136214245.5})
    assert '"@timestamp": "2006-01-02T15:04:05.500000Z"' in HclogFormatter().format(record)


LOGGING_PROGRAM = """
    import logging
    from palisade import Plugin

    plugin = Plugin("logs")
    {setup}

    @plugin.filter
    def check(request, config):
        logging.getLogger("mine").info("checking %s", request.path)
        raise ValueError("oops")

    plugin.serve()
"""


def test_records_go_to_stderr_as_json() -> None:
    with PluginProcess(LOGGING_PROGRAM.format(setup="")) as plugin:
        with pytest.raises(Exception, match="oops"):
            plugin.connect().check("/x")
        plugin.terminate()
        assert plugin.wait() == 0
        lines = [json.loads(line) for line in plugin.log.splitlines()]
        # On a busy machine, asyncio has something to say, too.
        (mine,) = (line for line in lines if line["@module"] == "mine")
        (failure,) = (line for line in lines if line["@level"] == "error")
        assert (mine["@level"], mine["@message"]) == ("info", "checking /x")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", mine["@timestamp"])
        assert failure["request_id"] == "id-1"
        assert failure["stacktrace"].splitlines()[-1] == "ValueError: oops"


def test_logging_that_the_program_has_set_up_stays() -> None:
    setup = 'logging.basicConfig(level="INFO", format="mine: %(message)s")'
    with PluginProcess(LOGGING_PROGRAM.format(setup=setup)) as plugin:
        with pytest.raises(Exception, match="oops"):
            plugin.connect().check("/x")
        plugin.terminate()
        assert plugin.wait() == 0
        assert plugin.log.splitlines().count("mine: checking /x") == 1
        assert "@level" not in plugin.log
