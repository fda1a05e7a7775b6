"""Commands of `darts` that are one file each."""
