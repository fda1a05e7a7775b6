"""The sections of the report's page, one a file."""
