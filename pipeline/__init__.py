"""The sans-I/O core of darts, its wire, and the stage process around it.

Imports neither torch nor vllm nor deepspeed: it starts in under a second.
"""
