"""The DeepSpeed learner: logprobs, losses, gradient accumulation by group, weight publishing."""
