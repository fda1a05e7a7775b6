"""Built-in environments, one a file: what follows a turn of the model, in a worker process."""
