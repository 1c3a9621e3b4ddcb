"""A build hook that says what to install where proton, which has no wheels, could not be compiled."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class CompilerCheck(MetadataHookInterface):
    """Ends an installation from source early, with a message, if it would fail late and at length."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Changes nothing; exits if there is neither a compiled proton nor the means to compile it."""
        if any(Path(sysconfig.get_path("platlib")).glob("cproton_ffi*")):
            return
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
        missing = []
        if shutil.which(compiler) is None:
            missing.append(f"a C compiler ({compiler})")
        if not Path(sysconfig.get_path("include"), "Python.h").is_file():
            missing.append("Python's headers (Python.h)")
        if missing:
            sys.exit(
                "amqpws-async needs python-qpid-proton, which has no wheels and is compiled while it is installed.\n"
                f"For that {' and '.join(missing)} must be there. Install what is missing, then try again:\n"
                "  Debian, Ubuntu:  apt-get install gcc libc6-dev python3-dev\n"
                "  Fedora, RHEL:    dnf install gcc python3-devel\n"
                "  Alpine:          apk add gcc musl-dev python3-dev\n"
                "  macOS:           xcode-select --install\n"
                "Or install a python-qpid-proton 0.40 that was compiled elsewhere first."
            )
