"""`darts replay`: a recorded run once more, and another selector over it."""
