"""How our own child processes are started: `python -m knowledge.extract`, `python -m knowledge.child`."""

import os
from pathlib import Path


def module_environment() -> dict[str, str]:
    """An environment in which `-m knowledge.…` is found, however this package was installed.

    Only what a program needs to run is passed on: a child that reads strangers' files is told no secrets.
    """
    passed = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")
    root = str(Path(__file__).resolve().parents[1])
    return {key: os.environ[key] for key in passed if key in os.environ} | {
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "2",
        "PYTHONUNBUFFERED": "1",
    }
