"""Train, evaluate and simulate from Python: what `darts` does on the command line.

    import darts

    run = darts.train(model="my_model", data=rows, reward=my_reward, steps=100)
    print(run.result["accuracy_after"])
    run.export("trained")

Plug-ins are written with `darts.plugins`. Importing either loads no torch, vLLM or DeepSpeed.
"""

from darts._calls import evaluate, load_config, simulate, train
from darts._run import Run, RunError
from pipeline.config.load import ConfigError
from pipeline.system.version import darts_version

__version__ = darts_version()
__all__ = [
    "ConfigError",
    "Run",
    "RunError",
    "evaluate",
    "load_config",
    "simulate",
    "train",
]
