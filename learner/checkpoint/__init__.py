"""The learner's part of a checkpoint: saved, sent between machines, exported."""
