"""One engine a file: vLLM, transformers, and a simulated one; helpers stand beside theirs."""
