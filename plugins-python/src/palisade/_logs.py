"""Log lines as the host reads them: hclog's JSON, one object on a line of stderr."""

from __future__ import annotations

import json
import logging
import sys
import time

_LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"), (logging.DEBUG, "debug"))
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class HclogFormatter(logging.Formatter):
    """Formats a record as hclog does with JSONFormat: level, message and time are kept by hosts that know hclog.

    What was given as ``extra=`` becomes keys of its own; a traceback is under ``stacktrace``.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "@level": _level(record.levelno),
            "@message": record.getMessage(),
            "@module": record.name,
            "@timestamp": _timestamp(record.created),
        }
        for key, value in vars(record).items():
            if key not in _OF_EVERY_RECORD and not key.startswith("@"):
                line[key] = value
        if record.exc_info and record.exc_info[0] is not None:
            line["stacktrace"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, default=str)


def configure_logging() -> None:
    """Sends the root logger's records to stderr, unless the program has set up logging itself."""
    if not logging.root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(HclogFormatter())
        logging.root.addHandler(handler)
        logging.root.setLevel(logging.INFO)


def _level(number: int) -> str:
    return next((name for level, name in _LEVELS if number >= level), "trace")


def _timestamp(created: float) -> str:
    # Exactly six fraction digits: hclog takes a line with any other number of them for raw text.
    seconds, micros = divmod(int(created * 1_000_000), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros:06d}Z"
