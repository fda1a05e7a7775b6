"""Advantages of the house, one a file: rewards of a group -> advantages and loss weights."""
