"""Certificates: what a loader returns, and the task that keeps the last good load."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import stat
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ._errors import CertificateError

logger = logging.getLogger("palisade")

MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """Why a loader is called."""

    reason: Literal["start", "configure", "refresh", "reload"]
    """``start``: the first configuration came. ``configure``: another one came. ``refresh``: the time is up.
    ``reload``: ``plugin.reload_certificates()`` was called."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its private key."""

    chain: bytes
    """PEM, leaf first, then intermediates."""
    private_key: bytes = field(repr=False)
    """PEM: PKCS#8, PKCS#1 or SEC1, not encrypted."""
    name: str = "default"
    """Tells it from the plugin's other certificates, at most 255 bytes. A later one of the same name replaces it."""
    server_names: tuple[str, ...] = ()
    """Server names (SNI) that it is for: exact (``"a.example"``) or with one leading wildcard label
    (``"*.example"``). Empty: the DNS names in the certificate."""

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= MAX_NAME_BYTES:
            raise ValueError(f"the name of a certificate has 1 to {MAX_NAME_BYTES} bytes")

    @classmethod
    def read(
        cls,
        cert_path: str | os.PathLike[str],
        key_path: str | os.PathLike[str],
        *,
        name: str = "default",
        server_names: Iterable[str] = (),
        allow_open_keys: bool = False,
    ) -> Certificate:
        """Reads a certificate chain and its private key from PEM files.

        Raises OSError when a file cannot be read, and when everyone can read the key's or write to it, unless
        ``allow_open_keys`` is true. When the files are being replaced, one may be read old and the other new: such a
        pair does not match, the load fails, and the plugin keeps what it had until the next one.
        """
        if isinstance(server_names, str):
            raise TypeError(f"server names come in a list: [{server_names!r}]")
        key = _read_key(Path(key_path), allow_open_keys)
        return cls(Path(cert_path).read_bytes(), key, name, tuple(server_names))


def _read_key(path: Path, allow_open: bool) -> bytes:
    with path.open("rb") as file:
        # Of the file that is open, wherever links have led to: it can't be replaced by another one in between.
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & (stat.S_IROTH | stat.S_IWOTH) and not allow_open:
            raise PermissionError(
                f"the private key {path} is open to everyone on this host (mode {mode:04o}); try: chmod o-rwx {path}"
            )
        return file.read()


#: Certificates in force, by name.
Bundles = dict[str, Certificate]

#: Calls the user's loader, whatever kind of function it is.
Load = Callable[[CertificateRequest], Awaitable[object]]


class CertificateStore:
    """Calls the loader and keeps what its last good call returned. Lives on one event loop."""

    def __init__(self, load: Load, refresh: float | None) -> None:
        self._load = load
        self._refresh = refresh
        self._due: Literal["start", "configure", "reload"] = "start"
        self._wanted = asyncio.Event()
        self._changed = asyncio.Condition()
        self._bundles: Bundles | None = None
        self._closed = False

    def load_soon(self, reason: Literal["start", "configure", "reload"]) -> None:
        """Makes ``run`` load now, or once more if it is loading."""
        self._due = reason
        self._wanted.set()

    async def run(self) -> None:
        """Loads on demand and every ``refresh`` seconds, until it is cancelled. The first load is always on demand:
        there is nothing to load by before the first configuration."""
        await self._wanted.wait()
        while True:
            reason: Literal["start", "configure", "refresh", "reload"] = "refresh"
            if self._wanted.is_set():
                self._wanted.clear()
                reason = self._due
            await self._load_once(CertificateRequest(reason))
            try:
                await asyncio.wait_for(self._wanted.wait(), self._refresh)
            except asyncio.TimeoutError:
                continue

    async def _load_once(self, request: CertificateRequest) -> None:
        try:
            bundles = accept(await self._load(request), known=self._bundles or {})
        except Exception:
            kept = "the last good certificates stay" if self._bundles else "there are no certificates yet"
            logger.exception("loading certificates (%s) failed: %s", request.reason, kept)
            return
        if bundles == self._bundles:
            return
        async with self._changed:
            self._bundles = bundles
            self._changed.notify_all()
        logger.info("loaded certificates (%s): %s", request.reason, ", ".join(sorted(bundles)))

    async def next(self, sent: Bundles | None, names: Collection[str]) -> Bundles | None:
        """Waits until the certificates named (none: all) differ from those sent, and returns them.

        None once the store is closed.
        """
        async with self._changed:
            while not self._closed:
                if self._bundles is not None:
                    wanted = {name: it for name, it in self._bundles.items() if not names or name in names}
                    if wanted != sent:
                        return wanted
                await self._changed.wait()
        return None

    async def close(self) -> None:
        """Ends every ``next``."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()


def accept(loaded: object, *, known: Bundles) -> Bundles:
    """Checks what a loader returned. Certificates that are already in force are not checked again."""
    certificates = [loaded] if isinstance(loaded, Certificate) else loaded
    if not isinstance(certificates, (list, tuple)):
        raise CertificateError(f"a loader returns a Certificate or a list of them, not {type(loaded).__name__}")
    bundles: Bundles = {}
    for certificate in certificates:
        if not isinstance(certificate, Certificate):
            raise CertificateError(f"a loader returns certificates, not {type(certificate).__name__}")
        if certificate.name in bundles:
            raise CertificateError(f"two certificates have the name {certificate.name!r}")
        if known.get(certificate.name) != certificate:
            check_pair(certificate)
        bundles[certificate.name] = certificate
    # An empty list would take every certificate away from the proxy: far more often a mistake than a wish.
    if not bundles:
        raise CertificateError("the loader returned no certificate")
    return bundles


def check_pair(certificate: Certificate) -> None:
    """Raises CertificateError if the chain or key cannot be parsed, or the key is not the leaf's.

    OpenSSL reads only files here. The key stays in memory all the same: the file has no name and no disk. Where the
    system cannot do that, the proxy's own check has to do.
    """
    if not hasattr(os, "memfd_create"):
        return
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(certificate.private_key.rstrip() + b"\n" + certificate.chain)
        path = f"/proc/self/fd/{descriptor}"
        if not os.access(path, os.R_OK):
            return
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, password=_refuse_encrypted)
    except (ssl.SSLError, ValueError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
        raise CertificateError(f"certificate {certificate.name!r} cannot be used: {reason}") from None
    finally:
        os.close(descriptor)


def _refuse_encrypted() -> str:
    raise ValueError("its private key is encrypted")
