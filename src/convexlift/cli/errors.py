"""Errors of the command line: one line on stderr, and an exit code."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable

# Errors whose messages are written for users.
_TOLD = (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError)

_INTERRUPTED = 130
_PLAIN = {"±": "+-", "²": "^2", "–": "-", "−": "-", "×": "x", "…": "...", "’": "'"}


class Interrupted(Exception):
    """Ctrl-C, and what is said of it."""


def run(command: Callable[[], object], *, debug: bool) -> int:
    """Call a command and return its exit code: 0, 1 after an error, 2 after a wrong call, 130 after Ctrl-C.

    With ``debug`` the traceback of an error is printed before its line.

    >>> run(lambda: None, debug=False)
    0
    """
    _say_plainly()
    try:
        code = command()
        sys.stdout.flush()
        if code == _INTERRUPTED:  # as typer makes of a KeyboardInterrupt
            raise Interrupted("interrupted")
    except Interrupted as said:
        print(said, file=sys.stderr)
        return _INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # who read what is printed has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return int(getattr(error, "exit_code", 1))
    return code if isinstance(code, int) else 0


def _say_plainly() -> None:
    """Where the terminal has no such signs, write +- for ± and so on, in place of an error."""
    codecs.register_error("plainly", _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plainly")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """What is written for the signs that an encoding has not.

    >>> _ = codecs.register_error("plainly", _plainly)
    >>> "R² ± – Ω".encode("ascii", "plainly")
    b'R^2 +- - ?'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def one_line(error: Exception) -> str:
    """What went wrong in one line, with the kind of error where its message is not meant for users.

    >>> one_line(ValueError("no rows")), one_line(KeyError("lift"))
    ('no rows', "KeyError: 'lift' (run again with --debug for the traceback)")
    """
    if hasattr(error, "format_message"):  # a wrong call, found by typer
        close = ", ".join(getattr(error, "possibilities", None) or ())
        hint = f"; did you mean {close}?" if close else ""
        told = getattr(error, "message", "") if close else error.format_message()
        text = f"{told}{hint} (--help shows how)"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    elif isinstance(error, _TOLD) and str(error):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error} (run again with --debug for the traceback)"
    return " ".join(text.split())


def load_torch() -> None:
    """Import torch and numpy in one piece: interrupted half way they fail later, and oddly."""
    if not hasattr(signal, "pthread_sigmask"):
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        import numpy  # noqa: F401
        import torch  # noqa: F401
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
