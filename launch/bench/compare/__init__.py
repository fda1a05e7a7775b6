"""`darts bench compare`: methods side by side, as one table."""
