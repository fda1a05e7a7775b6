"""`darts simulate`: runs in virtual time, and the tables that are made of them."""

from pathlib import Path

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "simulate.yaml"
"""What a simulated run is configured by, unless another file is named."""
