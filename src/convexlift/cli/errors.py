"""Errors of the command line: one line on stderr, and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

# Errors whose messages are written for users.
_TOLD = (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError)


def run(command: Callable[[], object], *, debug: bool) -> int:
    """Call a command and return its exit code: 0, 1 after an error, 2 after a wrong call, 130 after Ctrl-C.

    With ``debug`` the traceback of an error is printed before its line.

    >>> run(lambda: None, debug=False)
    0
    """
    try:
        code = command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return int(getattr(error, "exit_code", 1))
    return code if isinstance(code, int) else 0


def one_line(error: Exception) -> str:
    """What went wrong in one line, with the kind of error where its message is not meant for users.

    >>> one_line(ValueError("no rows")), one_line(KeyError("lift"))
    ('no rows', "KeyError: 'lift' (run again with --debug for the traceback)")
    """
    if hasattr(error, "format_message"):  # a wrong call, found by typer
        text = f"{error.format_message()} (--help shows how)"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    elif isinstance(error, _TOLD) and str(error):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (run again with --debug for the traceback)"
    return " ".join(text.split())
