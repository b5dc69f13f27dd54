"""The committed messages are those of the contract."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_generated_code_is_current() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        import generate
    finally:
        sys.path.remove(str(ROOT))
    committed = {path.name: path.read_text() for path in generate.TARGET.glob("*.py*")}
    assert committed == generate.generate(), "run: python generate.py"
