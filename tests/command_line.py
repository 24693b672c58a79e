"""The command line as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

RPA_RAY = str(Path(sys.executable).with_name("rpa-ray"))


def rpa_ray(*arguments: str, cache: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``rpa-ray`` in a folder with the models of a cache."""
    return subprocess.run(
        [RPA_RAY, *arguments],
        cwd=cwd,
        env={**os.environ, "RPA_RAY_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
