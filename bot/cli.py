"""The way in. `--version` is answered before anything else is imported."""

import sys

from bot import VERSION


def main() -> None:
    """Run the command line; see `bot.program` for the commands and exit codes."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        sys.stdout.write(f"chinwag {VERSION}\n")
        return
    from bot.program import run

    sys.exit(run())


if __name__ == "__main__":
    main()
