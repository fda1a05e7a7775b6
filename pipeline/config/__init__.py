"""The settings: one Struct a section, read from YAML and the command line, checked all at once."""
