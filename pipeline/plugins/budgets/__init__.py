"""Budgets of the house, one a file: prompts -> how many candidates each, and how long."""
