"""Whatever a user may replace: interfaces, registry, actions, views, and the built-in methods."""
