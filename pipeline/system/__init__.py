"""Wraps the operating system: CPU cores, durable files, private and temporary directories.

The lowest room: it imports nothing else of darts.
"""
