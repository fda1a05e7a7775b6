"""Has Python take names and text for UTF-8 in every locale, as all files of a run are.

In a locale of Latin-1 or ASCII the name of a file that is not ASCII is another text, or none: it
cannot be written into a configuration, nor be found again from another locale.
"""

from __future__ import annotations

import os
import sys


def use_utf8() -> None:
    """Start this command anew in Python's UTF-8 mode where the locale has another encoding; what
    is printed stays in the terminal's own. Children inherit the mode."""
    if sys.getfilesystemencoding() == "utf-8" or not sys.executable:
        return
    if sys.flags.ignore_environment or os.environ.get("PYTHONUTF8") == "1":
        return  # it would change nothing
    terminal = sys.stdout.encoding if sys.stdout is not None else "ascii"
    changed = {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{terminal}:backslashreplace"}
    words = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, words, os.environ | changed)  # noqa: S606
