"""The same job under torchrun, roles by rank:

    torchrun --nproc-per-node=P -m launch.torchrun CONFIG [key=value ...] [--out DIR]

P is learner.ranks + engine.count. The first ranks are learners, the others
engines; rank 0 also starts the stage and holds the run's folder. Torchrun's
store carries addresses, never keys. The learner ranks form a process group of
their own; an engine's rank replaces itself by a clean engine worker (same
process id, so torchrun still watches it). When torchrun restarts its workers
(--max-restarts), the run goes on from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from launch.local import Launcher, Roles, free_port
from launch.processes import clean_environment, learner_arguments, learner_environment
from launch.train import identify, say_outcome
from launch.view import TerminalView
from pipeline import checkpoint
from pipeline.config import Config
from pipeline.configfile import ConfigError, load
from pipeline.private import UMASK
from pipeline.records import Records
from pipeline.runfolder import RunError, RunFolder, new_name


def _store() -> Any:
    """Torchrun's own store, as a client."""
    from torch.distributed import TCPStore

    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def _replace(module: str, arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Become another program under the same process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-u", "-m", module, *arguments], environment)  # noqa: S606


def _check_world(config: Config) -> None:
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    wanted = config.learner.ranks + config.engine.count
    if world != local:
        raise SystemExit("darts: one node only, for now: start torchrun without --nnodes")
    if world != wanted:
        raise SystemExit(
            f"darts: torchrun started {world} ranks, but learner.ranks {config.learner.ranks} + "
            f"engine.count {config.engine.count} are {wanted}: use --nproc-per-node={wanted}"
        )


def _first_rank(config: Config, args: argparse.Namespace, store: Any, attempt: int) -> int:
    """Rank 0: run folder, stage and learner rank 0. Returns the exit status."""
    resume = None
    if store.check(["darts/run"]):  # torchrun has restarted us: go on where the run was
        run = RunFolder(Path(store.get("darts/run").decode()))
        if any(run.checkpoints.glob("step-*")):
            resume, manifest, _ = checkpoint.newest(run.checkpoints)
            print(f"darts: resuming {run.path} at step {manifest['step']}", flush=True)
    else:
        run = RunFolder(args.out or new_name(Path("runs") / args.config.stem))
    run.create()
    try:
        run.hold()
    except RunError as error:
        raise SystemExit(f"darts: {error}") from None
    if run.config.exists() and not store.check(["darts/run"]):
        raise SystemExit(f"darts: {run.path}: holds a run already; choose another --out")
    if resume is None:
        Records.cut(run, {})  # of an attempt that left no checkpoint
        identify(run, config)
    port = free_port()
    view = TerminalView(config.step.count, name=run.path.name)
    roles = Roles(engines=0, ranks=[0])
    launcher = Launcher(config, run, view, resume, roles, port)
    place: dict[str, Any] = {"run": str(run.path), "sockets": str(launcher.sockets)}
    place |= {"port": port, "resume": str(resume or "")}
    store.set("darts/run", str(run.path))
    store.set(f"darts/{attempt}/place", json.dumps(place))
    print(f"run: {run.path}", flush=True)
    status = launcher.run()
    view.close()
    run.release()
    say_outcome(run, config, status, launcher.error)
    return status


def _other_rank(config: Config, store: Any, rank: int, attempt: int) -> NoReturn:
    """Wait for rank 0's word, then become a learner rank or an engine."""
    place = json.loads(store.get(f"darts/{attempt}/place").decode())
    common = ["--directory", place["sockets"], "--config", f"{place['run']}/config.yaml"]
    environment = clean_environment()
    if rank >= config.learner.ranks:
        name = f"e{rank - config.learner.ranks}"
        _replace("engines.worker", [*common, "--name", name], environment)
    environment |= learner_environment(rank, config.learner.ranks, place["port"])
    arguments = learner_arguments(rank, config.learner.ranks, place["resume"])
    _replace("learner.actor", [*common, *arguments], environment)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings as key=value")
    parser.add_argument("--out", type=Path, help="the run's folder; a new one by default")
    args = parser.parse_intermixed_args()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise SystemExit("darts: start this by torchrun, or use `darts train` on one machine")
    try:
        config = load(args.config, args.overrides)
    except ConfigError as error:
        raise SystemExit(f"darts: {error}") from None
    _check_world(config)
    os.umask(UMASK)
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    store = _store()
    rank = int(os.environ["RANK"])
    if rank > 0:
        _other_rank(config, store, rank, attempt)
    return _first_rank(config, args, store, attempt)


if __name__ == "__main__":
    sys.exit(main())
