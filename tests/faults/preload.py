"""Faults of the C library in one process: shims that are compiled from the C files in this folder and preloaded."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler is installed: apt-get install gcc"
)


class Preload:
    """A compiled shim, and the file that controls it."""

    def __init__(self, name: str, folder: Path) -> None:
        """Compile the C file `name` in this folder; the library is put in `folder`."""
        self.file = folder / f"{name}.fault"
        self._library = folder / f"{name}.so"
        source = str(HERE / f"{name}.c")
        subprocess.run(["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", str(self._library), source, "-ldl"], check=True)

    @property
    def launcher(self) -> Sequence[str]:
        """A command that runs the command after it with the shim."""
        return ["env", f"LD_PRELOAD={self._library}", f"FAULT_FILE={self.file}"]
