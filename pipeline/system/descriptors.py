"""Which files this process has open, and how many it may open.

Standard streams that were closed are not left to what is opened next. A run raises the limit to
what the system allows, for a stage of many peers needs a few for each; and it looks how many are
used, so that strangers who open connections cannot take the last ones.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource

WANTED = 65_536


def raise_limit() -> int:
    """Raise the soft limit of open files towards `WANTED`; children inherit it. Returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
    return soft


def occupy_standard_streams() -> None:
    """Open /dev/null in the place of each standard stream that whoever started this has closed
    (`>&-`): a socket or a file of a run would get its number, and with it what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one


def soft_limit() -> int:
    """Return how many files this process may open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED if soft == resource.RLIM_INFINITY else soft


def open_share() -> float:
    """Return the share of this process's limit that is in use; 0.0 where the system does not
    tell."""
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError as error:  # not even that could be opened; or there is no /proc
        return 1.0 if error.errno in (errno.EMFILE, errno.ENFILE) else 0.0
    return used / soft_limit()
