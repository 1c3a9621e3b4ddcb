"""Streams that once did what none may do, each in a process of its own: some of them killed it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .fuzz.stream import CRASHES, SUFFIX

RECORDED = sorted(CRASHES.glob(f"*{SUFFIX}"))


@pytest.mark.parametrize("path", RECORDED, ids=[path.stem for path in RECORDED])
def test_what_the_fuzzer_found_stays_mended(path: Path) -> None:
    """A recorded stream ends as every stream has to, and nothing reaches stderr."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.stream", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, cwd=Path(__file__).parents[1]
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_corpus_is_found() -> None:
    """The recordings are where the fuzzer leaves them."""
    assert RECORDED
