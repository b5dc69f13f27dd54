"""Reads a certificate and its key from files, and again when the files are replaced.

    config: { dir: /etc/palisade/tls }          # has cert.pem and key.pem
    config: { cert: /a/chain.pem, key: /b/key.pem, server_names: [a.example] }
    config: { dir: /mnt/tls, allow_open_keys: true }    # key.pem may be a file that everyone can read
"""

from collections.abc import Iterator
from pathlib import Path

from palisade import Certificate, CertificateRequest, Config, ConfigError, Plugin

plugin = Plugin("cert-loader", version="0.1.0")


@plugin.configure
def validate(config: Config) -> Iterator[ConfigError]:
    if "dir" not in config and not {"cert", "key"} <= config.keys():
        yield ConfigError("name a `dir` that has cert.pem and key.pem, or the files as `cert` and `key`")
    if not isinstance(config.get("allow_open_keys", False), bool):
        yield ConfigError("true or false", path="allow_open_keys")


@plugin.certificates
def load(request: CertificateRequest, config: Config) -> Certificate:
    directory = Path(config.get("dir", "."))
    return Certificate.read(
        directory / config.get("cert", "cert.pem"),
        directory / config.get("key", "key.pem"),
        server_names=config.get("server_names", ()),
        allow_open_keys=config.get("allow_open_keys", False),
    )


if __name__ == "__main__":
    plugin.serve()
