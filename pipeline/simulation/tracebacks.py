"""The part of a traceback that is a plug-in's author's: file and line of what it raised."""

from __future__ import annotations

import traceback

_CORE = "/pipeline/coordinator/"


def plugin_traceback(error: BaseException) -> str:
    """Where a plug-in raised what a PluginFault names, as Python shows it; '' if it raised nothing:
    then its answer was wrong, which the fault's own text says."""
    cause = error.__cause__
    if cause is None:
        return ""
    found = traceback.TracebackException.from_exception(cause)
    own = [frame for frame in found.stack if _CORE not in frame.filename]
    found.stack = traceback.StackSummary.from_list(own)
    return "".join(found.format(chain=False)).rstrip()
