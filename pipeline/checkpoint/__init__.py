"""Checkpoints: the coordinator's state and the learner's files, committed by one rename."""
