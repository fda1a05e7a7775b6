"""One optimizer step: passes over groups, gradients kept until the step closes."""
