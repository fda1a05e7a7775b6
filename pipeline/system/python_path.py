"""Has Python look in the user's own folder last, after all that is installed.

A file `pipeline.py` or a folder `engines/` where a run is started must not be taken for darts'
own. So processes of a run are started with `-P`, which keeps the current folder from being the
first place, and each puts it at the end, for plug-ins and rewards by `module:name`.
"""

from __future__ import annotations

import os
import sys

SAFE = "-P"
"""Option of Python for every process that a run starts."""


def user_folder_last() -> bool:
    """Append the current folder to the places where modules are looked for, if it is none yet.
    Returns False if there is none any more."""
    try:
        here = os.getcwd()
    except OSError:
        return False
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    return True


def is_users_own(name: str, origin: str) -> bool:
    """Return True if a module's file lies in the current folder, and was found there because
    nothing that is installed has its name."""
    try:
        here = os.getcwd()
    except OSError:
        return False
    if here not in sys.path or sys.path.index(here) < len(sys.path) - 1:
        return False  # PYTHONPATH names it: it is meant
    return origin in (os.path.join(here, f"{name}.py"), os.path.join(here, name, "__init__.py"))
