"""Built-in prompt orders, one a file: what is wanted -> which prompts come next."""
