"""Loading certificates, and pushing them when they change."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import Issue
from harness import CERTIFICATES, DEADLINE, PluginProcess

from palisade import Certificate, CertificateRequest, Config, Plugin, _host_wire
from palisade.testing import CallFailed, PluginTester


class Loader:
    """Returns or raises what it is told to, and counts."""

    def __init__(self, result: object) -> None:
        self.result = result
        self.reasons: list[str] = []
        self._called = threading.Condition()

    def __call__(self, request: CertificateRequest, config: Config) -> Any:
        with self._called:
            self.reasons.append(request.reason)
            # Whoever waits for this call may have another result for the next one.
            result = self.result
            self._called.notify_all()
        if isinstance(result, BaseException):
            raise result
        return result

    def wait_for_calls(self, count: int) -> None:
        with self._called:
            assert self._called.wait_for(lambda: len(self.reasons) >= count, DEADLINE)

    def plugin(self, refresh: float | None = None) -> Plugin:
        plugin = Plugin("certificates")
        plugin.certificates(refresh=refresh)(self)
        return plugin


@pytest.fixture
def certificate(authority: trustme.CA) -> Callable[..., Certificate]:
    def make(name: str = "default", *server_names: str) -> Certificate:
        issued = authority.issue_cert(f"{name}.example")
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        return Certificate(chain, issued.private_key_pem.bytes(), name, server_names)

    return make


Make = Callable[..., Certificate]


def test_a_watch_gives_everything_at_once(certificate: Make) -> None:
    both = [certificate("a", "a.example", "*.a.example"), certificate("b")]
    with PluginTester(Loader(both).plugin()) as tester:
        assert tester.certificates() == both
        assert tester.certificates(["b", "c"]) == [both[1]]


def test_a_watch_says_that_it_is_complete(issue: Issue, tmp_path: Path) -> None:
    issue("a.example")
    sample = Path(__file__).parent.parent / "samples" / "cert_loader.py"
    with PluginProcess(sample) as plugin:
        plugin.connect({"dir": str(tmp_path)})
        message = next(plugin.stream(f"{CERTIFICATES}/Watch", _host_wire.encode_watch([], "1")))
        assert message.endswith(b"\x18\x01")


def test_a_watch_waits_for_the_first_good_load(certificate: Make) -> None:
    loader = Loader(ConnectionError("the vault is sealed"))
    plugin = loader.plugin()
    with PluginTester(plugin) as tester, tester.watch_certificates() as changes:
        loader.wait_for_calls(1)
        loader.result = certificate()
        plugin.reload_certificates()
        assert next(changes) == [loader.result]
    assert loader.reasons == ["start", "reload"]


def test_a_watch_gives_up_with_the_callers_deadline(certificate: Make) -> None:
    with PluginTester(Loader(ConnectionError()).plugin(), timeout=0.5) as tester:
        with pytest.raises(CallFailed, match="DEADLINE_EXCEEDED"):
            tester.certificates()


def test_a_change_is_pushed_and_nothing_else(certificate: Make) -> None:
    first, second = certificate("a"), certificate("a")
    loader = Loader(first)
    plugin = loader.plugin(refresh=0.001)
    with PluginTester(plugin) as tester, tester.watch_certificates() as changes:
        assert next(changes) == [first]
        # Loaded again and again without a message: the next one is the change.
        loader.wait_for_calls(10)
        loader.result = [second]
        assert next(changes) == [second]
        loader.result = [second, certificate("b")]
        assert [it.name for it in next(changes)] == ["a", "b"]
        loader.result = second
        assert next(changes) == [second]
    assert loader.reasons[:3] == ["start", "refresh", "refresh"]


def test_a_change_of_another_certificate_is_not_pushed(certificate: Make) -> None:
    first, second, other = certificate("a"), certificate("a"), certificate("b")
    loader = Loader([first, other])
    plugin = loader.plugin()
    with PluginTester(plugin) as tester, tester.watch_certificates(["a"]) as changes:
        assert next(changes) == [first]
        loader.result = [first, certificate("b")]
        plugin.reload_certificates()
        loader.wait_for_calls(2)
        loader.result = [second, other]
        plugin.reload_certificates()
        assert next(changes) == [second]


class Panic(BaseException):
    """What an extension module may raise."""


def mismatched(make: Make) -> object:
    return Certificate(make().chain, make().private_key)


def encrypted(make: Make) -> object:
    return Certificate(make().chain, ENCRYPTED_KEY)


ENCRYPTED_KEY = b"""-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF

AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
-----END EC PRIVATE KEY-----
"""


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda make: FileNotFoundError("cert.pem"), "FileNotFoundError: cert.pem"),
        (lambda make: Panic("deep"), "RuntimeError: Panic: deep"),
        (mismatched, "'default' cannot be used: KEY_VALUES_MISMATCH"),
        (encrypted, "'default' cannot be used: its private key is encrypted"),
        (lambda make: Certificate(b"", make().private_key), "'default' cannot be used: "),
        (lambda make: Certificate(make().chain, b""), "'default' cannot be used: "),
        (lambda make: Certificate(b"garbage", b"garbage"), "'default' cannot be used: "),
        (lambda make: [make("a"), make("a")], "two certificates have the name 'a'"),
        (lambda make: [], "returned no certificate"),
        (lambda make: None, "returns a Certificate or a list of them, not NoneType"),
        (lambda make: make().chain, "returns a Certificate or a list of them, not bytes"),
        (lambda make: [make().chain], "returns certificates, not bytes"),
    ],
)
def test_a_bad_load_is_logged_and_the_last_good_one_stays(
    bad: Callable[[Make], object], message: str, certificate: Make, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = certificate("a"), certificate("a")
    loader = Loader(first)
    plugin = loader.plugin()
    with PluginTester(plugin) as tester, tester.watch_certificates() as changes:
        assert next(changes) == [first]
        loader.result = bad(certificate)
        plugin.reload_certificates()
        loader.wait_for_calls(2)
        assert tester.certificates() == [first]
        loader.result = second
        plugin.reload_certificates()
        assert next(changes) == [second]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "loading certificates (reload) failed: the last good certificates stay"
    assert message in caplog.text
    assert "PRIVATE KEY" not in caplog.text


def test_a_new_configuration_loads_again(certificate: Make) -> None:
    loaded = {"a": certificate("a"), "b": certificate("b")}
    plugin = Plugin("certificates")

    @plugin.certificates(refresh=None)
    async def load(request: CertificateRequest, config: Config) -> list[Certificate]:
        return [loaded[config["name"]]]

    with PluginTester(plugin, {"name": "a"}) as tester, tester.watch_certificates() as changes:
        assert next(changes) == [loaded["a"]]
        tester.configure({"name": "b"})
        assert next(changes) == [loaded["b"]]


def test_files_are_watched(issue: Issue, tmp_path: Path) -> None:
    issue("a.example")
    plugin = Plugin("certificates")

    @plugin.certificates(refresh=0.01)
    def load(request: CertificateRequest, config: Config) -> Certificate:
        return Certificate.read(
            tmp_path / "cert.pem", str(tmp_path / "key.pem"), name="a", server_names=["a.example"]
        )

    with PluginTester(plugin) as tester, tester.watch_certificates() as changes:
        [before] = next(changes)
        assert (before.name, before.server_names) == ("a", ("a.example",))
        issue("b.example")
        [after] = next(changes)
        assert after.chain == (tmp_path / "cert.pem").read_bytes() != before.chain
        assert after.private_key == (tmp_path / "key.pem").read_bytes()


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666, 0o777])
def test_a_key_that_is_open_to_everyone_is_refused(mode: int, issue: Issue, tmp_path: Path) -> None:
    issue("a.example")
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    files[1].chmod(mode)
    with pytest.raises(PermissionError) as raised:
        Certificate.read(*files)
    for part in (str(files[1]), f"mode {mode:04o}", f"chmod o-rwx {files[1]}"):
        assert part in str(raised.value)
    assert Certificate.read(*files, allow_open_keys=True).private_key == files[1].read_bytes()


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640, 0o660])
def test_a_key_for_its_owner_and_group_is_read(mode: int, issue: Issue, tmp_path: Path) -> None:
    issue("a.example")
    (tmp_path / "key.pem").chmod(mode)
    Certificate.read(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_links_count_as_what_they_lead_to(issue: Issue, tmp_path: Path) -> None:
    """As Kubernetes lays a volume out: names lead through ``..data`` to a directory that is replaced as a whole."""
    issue("a.example")
    held = tmp_path / "..2026_11_21"
    held.mkdir()
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).rename(held / name)
        (tmp_path / name).symlink_to(f"..data/{name}")
    (tmp_path / "..data").symlink_to(held.name)
    (held / "key.pem").chmod(0o440)
    Certificate.read(tmp_path / "cert.pem", tmp_path / "key.pem")
    (held / "key.pem").chmod(0o444)
    with pytest.raises(PermissionError, match="mode 0444"):
        Certificate.read(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_an_open_key_replaces_none_that_is_served(
    issue: Issue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issue("a.example")
    plugin = Plugin("certificates")

    @plugin.certificates(refresh=None)
    def load(request: CertificateRequest, config: Config) -> Certificate:
        return Certificate.read(tmp_path / "cert.pem", tmp_path / "key.pem")

    with PluginTester(plugin) as tester:
        before = tester.certificates()
        issue("b.example")
        (tmp_path / "key.pem").chmod(0o644)
        plugin.reload_certificates()
        deadline = time.monotonic() + DEADLINE
        while "chmod o-rwx" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert tester.certificates() == before


def test_a_certificate_shows_no_key(certificate: Make) -> None:
    assert "PRIVATE" not in repr(certificate())


def test_impossible_certificates_are_refused() -> None:
    for name in ("", "x" * 256, "é" * 128):
        with pytest.raises(ValueError, match="1 to 255 bytes"):
            Certificate(b"", b"", name)
    with pytest.raises(TypeError, match=r"come in a list: \['a.example'\]"):
        Certificate.read("cert.pem", "key.pem", server_names="a.example")
    with pytest.raises(FileNotFoundError):
        Certificate.read("/nonexistent/cert.pem", "/nonexistent/key.pem")


@pytest.mark.parametrize("refresh", [0, -1.0, float("inf"), float("nan")])
def test_impossible_intervals_are_refused(refresh: float) -> None:
    with pytest.raises(ValueError, match="refresh"):
        Plugin("x").certificates(refresh=refresh)


def test_reloading_outside_serve_does_nothing() -> None:
    Loader(None).plugin().reload_certificates()
    with pytest.raises(RuntimeError, match="no certificate loader"):
        Plugin("x").reload_certificates()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, the proxy checks")
def test_checking_a_pair_leaves_no_descriptor(certificate: Make) -> None:
    from palisade._certificates import check_pair

    before = len(list(Path("/proc/self/fd").iterdir()))
    check_pair(certificate())
    assert len(list(Path("/proc/self/fd").iterdir())) == before
