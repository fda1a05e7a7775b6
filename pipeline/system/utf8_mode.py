"""Has Python take names and text for UTF-8 in a locale of ASCII, as containers and clusters have.

There the name of a file that is not ASCII is no text: it can neither be written into a
configuration nor shown.
"""

from __future__ import annotations

import os
import sys


def use_utf8() -> None:
    """Start this command anew in Python's UTF-8 mode where names can be of ASCII only; what is
    printed stays in the terminal's own encoding. Children inherit the mode."""
    if sys.getfilesystemencoding() != "ascii" or not sys.executable:
        return
    if sys.flags.ignore_environment or os.environ.get("PYTHONUTF8") == "1":
        return  # it would change nothing
    terminal = sys.stdout.encoding if sys.stdout is not None else "ascii"
    changed = {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{terminal}:backslashreplace"}
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, words, os.environ | changed)  # noqa: S606
