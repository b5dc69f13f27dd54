"""Generates src/palisade/_generated from ../plugin-proto/proto.

Run it after the contract changed: ``python generate.py``. tests/test_generated.py fails until then.

Only messages are generated. The services are a handful of methods that palisade._server names itself, which keeps
the code that grpcio-tools generates for them, and the version of grpcio that it insists on, out of the package.
"""

from __future__ import annotations

import re
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTO = HERE.parent / "plugin-proto" / "proto"
PACKAGE = "palisade/plugin/v1"
FILES = ("common", "lifecycle", "filter", "certificates")
TARGET = HERE / "src" / "palisade" / "_generated"


def generate() -> dict[str, str]:
    """Returns the text of every generated file by its name in TARGET."""
    well_known = resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as out:
        arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={out}", f"--pyi_out={out}"]
        status = protoc.main(arguments + [f"{PACKAGE}/{file}.proto" for file in FILES])
        if status != 0:
            sys.exit(f"protoc failed with status {status}")
        generated = {path.name: flatten(path.read_text()) for path in sorted((Path(out) / PACKAGE).iterdir())}
    return {"__init__.py": '"""Messages of palisade.plugin.v1, made by generate.py."""\n', **generated}


def flatten(text: str) -> str:
    """Makes imports relative: absolute ones would look for palisade.plugin.v1, which is not a Python package."""
    return re.sub(rf"^from {PACKAGE.replace('/', '[.]')} import", "from . import", text, flags=re.MULTILINE)


def main() -> None:
    TARGET.mkdir(exist_ok=True)
    files = generate()
    for stale in TARGET.glob("*.py*"):
        if stale.name not in files:
            stale.unlink()
    for name, text in files.items():
        (TARGET / name).write_text(text)


if __name__ == "__main__":
    main()
