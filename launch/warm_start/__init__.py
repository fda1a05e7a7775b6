"""Makes the models of the built-in tasks: `python -m launch.warm_start --out DIR`.

`recipes` says what each learns from, `tokenizer` turns the tasks' alphabet into a Hugging Face
tokenizer, `train` turns generated traces into a small Qwen3 model. Importing this package loads
no torch.
"""
