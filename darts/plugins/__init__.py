"""What a plug-in's author needs: interfaces, actions, views, `register`, and `testing`."""

from pipeline.plugins import *  # noqa: F403  the list is there
from pipeline.plugins import __all__  # noqa: F401
