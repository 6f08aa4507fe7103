"""The command ``convexlift``, and ``python -m convexlift``: Ctrl-C is answered while it still loads too."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        from convexlift.cli.main import main as command_line
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
