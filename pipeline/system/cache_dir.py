"""Where a user's caches lie, and who the user is, on machines that know neither home nor name.

A container may run as a number that no file of users has, with no home that can be written.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

_NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")
"""Variables that `getpass` looks at, which torch and vLLM name their caches by."""


def cache_directory(environment: Mapping[str, str] | None = None) -> Path | None:
    """Return the folder of the user's caches; None if no home is known."""
    given = os.environ if environment is None else environment
    if cache := given.get("XDG_CACHE_HOME"):
        return Path(cache)
    home = given.get("HOME") or os.path.expanduser("~")
    return Path(home) / ".cache" if home.startswith("/") else None


def name_for_a_nameless_user(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that stands for a user's name, where nobody knows one: libraries ask for
    it, and raise."""
    if any(environment.get(name) for name in _NAMES):
        return {}
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return {"USER": f"uid{os.getuid()}"}
    return {}
