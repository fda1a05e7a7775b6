"""`darts bench compare`: methods side by side in one table."""
