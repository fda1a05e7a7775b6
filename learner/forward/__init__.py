"""Groups -> micro-batches -> packed passes -> logprobs."""
