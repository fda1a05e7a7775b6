"""Selectors of the house, one a file: a view of one group and an event -> verbs."""
