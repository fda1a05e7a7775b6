"""`darts doctor`: checks that this machine, or every machine of a job, can run darts."""
