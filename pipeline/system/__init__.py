"""Wraps the operating system: CPU cores, durable files, private and temporary directories.

A low room: of darts it imports nothing but what hides passwords.
"""
