"""Makes the model that the quickstart starts from: `python -m launch.warm_start --out DIR`.

`tokenizer` turns the task's alphabet into a Hugging Face tokenizer, `train` turns
generated traces into a small Qwen3 model. Importing this package loads no torch.
"""
