"""Reads prompts: files and tasks become rows, rows become prompts with token ids."""
