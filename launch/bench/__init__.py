"""Measurements: what a run of darts is compared to.

`plain_loop` is GRPO in one process without streaming, `sampler` the batched sampler
it uses. Importing this package loads no torch.
"""
