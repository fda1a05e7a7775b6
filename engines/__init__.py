"""Rollout engines: a protocol, vLLM, a simulated one, and the worker process around an engine."""
