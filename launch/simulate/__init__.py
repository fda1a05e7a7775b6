"""`darts simulate`: runs in virtual time, and tables made from them."""

from pathlib import Path

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "simulate.yaml"
"""Default configuration of a simulated run."""
