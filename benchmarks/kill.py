"""Kill the engine again and again: `python -m benchmarks.kill [--kills 200] [--seed 1] [--keep FOLDER]`.

The same as tests/test_engine_kill.py, for as long as you like. Exit code 1 when a promise was broken.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.standins.killer import Killer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="an empty folder for the journal and the engine's file")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(Killer(folder, seed=arguments.seed).run(arguments.kills))
    table = Table("", "count")
    for what, count in (
        ("kills", report.kills),
        ("messages accepted, each sent four times or more", report.accepted),
        ("turns taken up again after a kill", report.came_back),
        ("thoughts begun again", report.thought_again),
        ("deliveries begun again", report.delivered_again),
        ("promises broken", len(report.violations)),
    ):
        table.add_row(what, str(count))
    console = Console()
    console.print(table)
    console.print(f"{time.monotonic() - begun:.0f} s, seed {arguments.seed}")
    for violation in report.violations:
        console.print(violation)
    sys.exit(bool(report.violations))


if __name__ == "__main__":
    main()
