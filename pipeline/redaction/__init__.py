"""Keeps secrets out of what is shown and kept. Every room may import it; it imports none. Pure."""
