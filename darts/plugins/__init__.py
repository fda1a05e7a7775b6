"""What a plug-in's author needs: interfaces, actions, views, `register`, and `testing`."""

from pipeline import plugins
from pipeline.plugins import *  # noqa: F403  the list is there

__all__ = plugins.__all__
