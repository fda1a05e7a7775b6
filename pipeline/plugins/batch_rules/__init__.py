"""Built-in batch rules, one a file: the open step -> which groups, and when to close."""
