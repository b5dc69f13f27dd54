"""Write plugins for the Palisade HTTP proxy.

Start with `Plugin`. A filter answers with `allow` or `deny`, a response filter with `keep` or `replace`, and a
certificate loader with a `Certificate`. `palisade.testing` runs a plugin without the proxy.
"""

from ._certificates import Certificate, CertificateRequest
from ._errors import CertificateError, ConfigError
from ._headers import Headers
from ._plugin import Plugin
from ._request import Address, Request, Response, Route, TlsInfo
from ._verdicts import ResponseVerdict, Verdict, allow, deny, keep, replace
from ._wire import Config

__version__ = "0.1.0"

__all__ = [
    "Address",
    "Certificate",
    "CertificateError",
    "CertificateRequest",
    "Config",
    "ConfigError",
    "Headers",
    "Plugin",
    "Request",
    "Response",
    "ResponseVerdict",
    "Route",
    "TlsInfo",
    "Verdict",
    "allow",
    "deny",
    "keep",
    "replace",
]
