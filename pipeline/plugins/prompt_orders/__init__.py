"""Prompt orders of the house, one a file: what is wanted -> which prompts come next."""
