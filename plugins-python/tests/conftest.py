from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

Issue = Callable[[str], None]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def issue(authority: trustme.CA, tmp_path: Path) -> Issue:
    """Writes a new certificate for a name to cert.pem and key.pem in tmp_path."""

    def write(server_name: str) -> None:
        issued = authority.issue_cert(server_name)
        (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        (tmp_path / "key.pem").touch(0o600)
        (tmp_path / "key.pem").write_bytes(issued.private_key_pem.bytes())

    return write
