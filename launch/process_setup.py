"""Makes the process of a command sound, whatever shell, folder and locale it was started from."""

from __future__ import annotations

import io
import signal
import sys

from launch.options import exit_at_once


def prepare_process() -> None:
    """Prepares this process, before anything is read; a locale of ASCII starts it anew."""
    from pipeline.system.descriptors import occupy_standard_streams
    from pipeline.system.python_path import user_folder_last
    from pipeline.system.utf8_mode import use_utf8

    use_utf8()
    occupy_standard_streams()
    if not user_folder_last():
        exit_at_once("the current folder was removed, or cannot be read; go to another one", 2)
    # Until a run takes both itself, SIGTERM ends a command as Ctrl-C does: status 130.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):  # a terminal without a character shows its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
