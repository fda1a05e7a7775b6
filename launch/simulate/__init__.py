"""`darts simulate`: runs in virtual time, and tables made from them."""

from pathlib import Path

CONFIG = Path("configs") / "simulate.yaml"
"""Default configuration of a simulated run, one of those that come with darts."""
