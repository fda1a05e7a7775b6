"""Commands of `darts`, one file each."""
