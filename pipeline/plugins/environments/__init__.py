"""Environments of the house, one a file: what follows a turn of the model, in a worker process."""
