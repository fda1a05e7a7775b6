"""The engines, one file each: vLLM, transformers, and a simulated one; helpers beside them."""
