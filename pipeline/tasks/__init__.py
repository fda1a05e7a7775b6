"""Built-in tasks: prompts with checkable answers, made by rule.

Each module is one task. It turns (split, seed, index) into a prompt and its
answer, and random numbers into the traces that a warm start learns from. Nothing is
downloaded or stored, and nothing heavier than the standard library is imported.
"""
