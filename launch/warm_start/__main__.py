"""`python -m launch.warm_start [--task long_sums] --out models/chain-sums --seed 0 --steps 800`.

Turns a seed into a model directory that transformers and vLLM load: weights in
bfloat16, tokenizer, generation settings, and a README that says how it was made.
"""

# torch and transformers leave parts of their signatures untyped.
# pyright: reportUnknownMemberType=false

import argparse
from pathlib import Path

from launch.warm_start.recipes import RECIPES

README = """# {name}: {role}

A Qwen3-shaped model of {parameters:,} parameters ({hidden} x {layers} layers, {vocabulary}
one-character tokens, bfloat16) {about} The task and the traces it learned from are in
`pipeline/tasks/{task}.py`. It was made by

    {command}

on a CPU, in some minutes; nothing was downloaded. Other versions of torch round differently, so
a model made again behaves alike but is not equal to the bit.
`tests/launch/warm_start/{test}` holds the properties that the rest of the project
relies on.
"""


def main() -> None:
    """Trains, then writes the model directory."""
    parser = argparse.ArgumentParser(prog="python -m launch.warm_start", description=__doc__)
    parser.add_argument("--task", choices=RECIPES, default="chain_sums", help="what to learn")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and traces")
    parser.add_argument("--steps", type=int, default=800, help="600 to 1000 are enough")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    recipe = RECIPES[options.task]

    import torch  # imported here, so that --help is quick

    from launch.warm_start import tokenizer, train
    from pipeline.tasks import chain_sums

    torch.set_num_threads(options.threads)
    model = train.train_model(recipe, options.steps, options.seed)

    model.generation_config.eos_token_id = train.EOS_ID
    model.generation_config.pad_token_id = train.PAD_ID
    model.generation_config.do_sample = True
    model.bfloat16().save_pretrained(options.out)
    tokenizer.character_tokenizer(
        chain_sums.ALPHABET,
        pad=chain_sums.PAD,
        eos=chain_sums.EOS,
        size=train.VOCABULARY,
        max_tokens=recipe.max_tokens,
    ).save_pretrained(options.out)
    task = "" if options.task == "chain_sums" else f"--task {options.task} "  # the default
    command = f"python -m launch.warm_start {task}--out models/{options.out.name}"
    (options.out / "README.md").write_text(
        README.format(
            name=options.out.name,
            role=recipe.role,
            about=recipe.about,
            task=options.task,
            test=recipe.test,
            parameters=model.num_parameters(),
            hidden=model.config.hidden_size,
            layers=model.config.num_hidden_layers,
            vocabulary=model.config.vocab_size,
            command=f"{command} --seed {options.seed} --steps {options.steps}",
        ),
        encoding="utf-8",
    )
    for file in options.out.iterdir():
        file.chmod(0o644)  # safetensors makes files that only their owner can read
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
