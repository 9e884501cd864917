"""Faults of the C library that one process meets: shims that are compiled from the C files here, and preloaded."""

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
    """One shim, and the file by which it is told what to do."""

    def __init__(self, name: str, folder: Path) -> None:
        """`name` is that of a C file here; what is made of it goes to `folder`."""
        self.file = folder / f"{name}.fault"
        self._library = folder / f"{name}.so"
        source = str(HERE / f"{name}.c")
        subprocess.run(["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", str(self._library), source, "-ldl"], check=True)

    @property
    def launcher(self) -> Sequence[str]:
        """A command that becomes the one that is appended to it, with the shim in it."""
        return ["env", f"LD_PRELOAD={self._library}", f"FAULT_FILE={self.file}"]
