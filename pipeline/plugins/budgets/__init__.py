"""Built-in budgets, one a file: prompts -> how many candidates each, and how long."""
