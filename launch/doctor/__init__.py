"""`darts doctor`: whether this machine, or every machine of a job, can run darts."""
