"""`darts show`: what a run's policy wrote, side by side."""
