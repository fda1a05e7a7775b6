"""A run's events and what the coordinator answered, on disk: written by the stage, read for a
replay."""
