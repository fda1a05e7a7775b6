"""`darts simulate`: runs in virtual time, and tables made from them."""

from pipeline.config import shipped

CONFIG = shipped.ROOT / "configs" / "simulate.yaml"
"""Default configuration of a simulated run."""
