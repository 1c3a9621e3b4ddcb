"""``python -m tests.soak [--tenth]``; ends with a line ``N passed, N failed``."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

PARTS = ("churn", "messages", "slow", "tokens")


def main() -> int:
    """Runs the parts one after the other; 0 if all passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="The package for a long time.")
    parser.add_argument("--tenth", action="store_true", help="a tenth of the whole, below two minutes")
    arguments = parser.parse_args()
    failed = 0
    for part in PARTS:
        print(f"--- {part}", flush=True)
        started = time.monotonic()
        command = [sys.executable, "-W", "error", "-m", f"tests.soak.{part}", *(["--tenth"] if arguments.tenth else [])]
        code = subprocess.run(command, check=False).returncode
        failed += code != 0
        print(f"--- {part} {'failed' if code else 'passed'} in {time.monotonic() - started:.0f} s", flush=True)
    print(f"{len(PARTS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
