"""Views of a running job: `darts top`, `darts status`, and the panel of `darts train`."""
