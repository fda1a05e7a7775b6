"""Built-in rewards, one a file: an ended trajectory -> a number, in a worker process."""
