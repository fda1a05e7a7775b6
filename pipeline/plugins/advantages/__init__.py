"""Built-in advantages, one a file: rewards of a group -> advantages and loss weights."""
