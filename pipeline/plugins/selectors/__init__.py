"""Built-in selectors, one a file: a view of one group and an event -> actions."""
