"""What goes wrong, as plugin authors see it."""

from __future__ import annotations


class ConfigError(Exception):
    """The configuration is refused.

    Raised (or yielded, to name several) by the function registered with ``@plugin.configure``. The proxy shows it
    with the place in its configuration file.

    Args:
        message: what is wrong and what would be right, one sentence.
        path: where in ``config:``, as keys and indexes joined by dots (``"allow.0"``); empty for the whole.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class CertificateError(Exception):
    """A loader returned nothing that can be used: no certificate, two of one name, or a key of another one."""


class CallError(Exception):
    """Why a call fails: the name of a gRPC status, and the text for the host. Never leaves this package."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
