"""`darts explain`: why each group was chosen, dropped or stopped, in plain words."""
