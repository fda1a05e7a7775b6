"""Command line and launchers. Nothing imports this package."""
