"""The same job under torchrun, on one machine or several, roles by rank:

    torchrun --nproc-per-node=P -m launch.torchrun CONFIG [key=value ...] [--out DIR]
    torchrun --nnodes=N --nproc-per-node=P --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT
        -m launch.torchrun CONFIG [key=value ...] --out DIR          (the same on each machine)

N times P is learner.ranks + engine.count; `nodes.learners` says which ranks are
learners. Rank 0 also starts the stage and holds the run's folder. Torchrun's
store carries addresses and public keys, never a secret. The learner ranks form
a process group of their own; every other rank replaces itself (same process id,
so torchrun still watches it). When torchrun restarts its workers
(--max-restarts), or is started again with the same --out, the run goes on from
its newest checkpoint. docs/nodes.md is the guide.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from launch.commands.train import check_fits, identify, rewrite, say_outcome
from launch.launcher import gpus
from launch.launcher.local import Launcher, Roles
from launch.launcher.processes import (
    clean_environment,
    die_with_parent,
    learner_arguments,
    learner_environment,
)
from launch.monitor.terminal import TerminalView
from launch.preflight import learner
from launch.torchrun import run_location
from launch.torchrun.network import interface_towards
from launch.torchrun.node import Node, Plan, digest_of, hand_over, leave_there, make_site
from launch.torchrun.rendezvous import Hello, MeetingError, Place, Seal, attend, join
from launch.torchrun.roles import PlacementError
from pipeline.checkpoint.store import CheckpointError, newest
from pipeline.config.load import ConfigError, dump, load
from pipeline.config.schema import Config
from pipeline.data.files import DataError
from pipeline.observability import trackers
from pipeline.observability.recorder import Records
from pipeline.system.private_dirs import UMASK
from pipeline.system.run_folder import RunError, RunFolder, new_name
from pipeline.wire.curve_auth import new_pair
from pipeline.wire.keys import PeerKeys, TransportError

_STORE_S = 300.0


def _store(node: Node) -> Any:
    """Torchrun's own store; where it shares none (TORCH_DISABLE_SHARE_RDZV_TCP_STORE), rank 0's."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and node.rank == 0
    limit = timedelta(seconds=_STORE_S)
    return TCPStore(address, port, is_master=ours, wait_for_workers=False, timeout=limit)


def _replace(module: str, arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Become another program under the same process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-u", "-m", module, *arguments], environment)  # noqa: S606


# --- rank 0 -----------------------------------------------------------------------------------


def _open_run(config: Config, args: argparse.Namespace, store: Any) -> RunFolder:
    """The run's folder, held: a new one, or where this job was before. Raises RunError."""
    if store.check(["darts/run"]):  # torchrun has restarted us
        run = RunFolder(Path(store.get("darts/run").decode()))
    else:
        run = RunFolder(args.out or new_name(Path("runs") / args.config.stem))
    run.create()
    run.hold()
    run_location.check(run)
    if run.result.exists():
        done = json.loads(run.result.read_text())["steps"]
        if done >= config.step.count:
            raise RunError(
                f"{run.path}: this run is over, after {done} steps; raise step.count, or choose "
                "another --out"
            )
    store.set("darts/run", str(run.path))
    return run


def _resume_point(config: Config, given: Path, run: RunFolder) -> Path | None:
    """The newest checkpoint, or the run begun anew where none was ever written.

    Args:
        given: the file that the configuration is from.

    Raises: RunError where a run of other settings has begun there, CheckpointError where there
    was a checkpoint, and none is whole or fits.
    """
    other = run.config.exists() and run.config.read_text() != dump(config)
    ever = ("step-", "corrupt-", ".old-")
    if not any(path.name.startswith(ever) for path in run.checkpoints.iterdir()):
        if other:
            raise RunError(
                f"{run.path}: holds a run of another configuration, without a checkpoint to go on "
                "from; choose another --out"
            )
        Records.truncate_files(run, {})  # of an attempt that left no checkpoint
        identify(run, config)
        return None
    resume, manifest, complaints = newest(run.checkpoints)
    for line in complaints:
        print(f"darts: damaged, not used: {line}", flush=True)
    check_fits(resume, manifest, config, f"{given} or the settings of this command")
    if other:
        print(f"darts: {run.config}: free settings have changed; these count now", flush=True)
        rewrite(run, config)
    print(f"darts: resuming {run.path} at step {manifest['step']}", flush=True)
    return resume


def _first_rank(config: Config, args: argparse.Namespace, store: Any, node: Node) -> int:
    """Rank 0: run folder, stage and learner rank 0. Returns the exit status."""
    if problems := [*learner.complaints(config), *trackers.tracker_complaints(config.metrics)]:
        raise RunError("\n".join(problems))
    run = _open_run(config, args, store)
    resume = _resume_point(config, args.config, run)
    plan = Plan.make(config, node)
    digest = digest_of(config)
    run_location.claim(run.path, plan.round)

    def answer(hellos: Mapping[int, Hello]) -> dict[int, Place]:
        return plan.places(hellos, run.path, resume, digest)

    try:
        hellos = attend(store, args.seal, node.world, answer, config.timeouts.join_s)
    except MeetingError as error:
        raise SystemExit(f"darts: {error}") from None
    if refused := {place.refused for place in answer(hellos).values()} - {""}:
        raise SystemExit(f"darts: {'; '.join(sorted(refused))}")
    site = make_site(plan, hellos, run, dump(config))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_towards(plan.host))
    os.environ.setdefault("NCCL_SOCKET_IFNAME", os.environ["GLOO_SOCKET_IFNAME"])
    view = TerminalView(config.step.count, name=run.path.name)
    launcher = Launcher(config, run, view, resume, Roles(engines=0, ranks=[0]), site)
    print(f"run: {run.path}", flush=True)
    try:
        status = launcher.run()
    finally:
        view.close()
        (run.path / "join.key").unlink(missing_ok=True)
        run_location.leave(run.path)
        run.release()
    say_outcome(run, config, status, launcher.error)
    return status


# --- the others -------------------------------------------------------------------------------


def _other_rank(config: Config, args: argparse.Namespace, store: Any, node: Node) -> NoReturn:
    """Meet rank 0, then become a learner rank or the keeper of an engine."""
    pair, number = new_pair(), secrets.token_hex(16)
    hello = Hello(number=number, node=node.number, key=pair.public, config=digest_of(config))
    try:
        place = join(store, args.seal, node.rank, hello, config.timeouts.join_s)
    except MeetingError as error:
        raise SystemExit(f"darts: rank {node.rank}: {error}") from None
    peer_keys = PeerKeys(
        control=place.control,
        data=place.data,
        weights=place.weights,
        server=place.server or None,
        keys=pair if place.server else None,
    )
    run = Path(place.run)
    logs = node.logs(run)
    shared = run_location.shared(run, place.round)
    if not shared:
        run_location.note(run, place.host)
    environment = clean_environment()
    environment.setdefault("GLOO_SOCKET_IFNAME", interface_towards(place.host))
    environment.setdefault("NCCL_SOCKET_IFNAME", environment["GLOO_SOCKET_IFNAME"])
    if place.name.startswith("e"):
        environment |= gpus.for_engine(
            gpus.of_machine(environment),
            place.learners,
            node.local_rank - place.learners,
            config.engine.tensor_parallel,
        )
        own = node.scratch(place.name)
        leave_there(own, peer_keys, dump(config))
        command = ["--scratch", str(own), "--name", place.name, "--logs", str(logs)]
        if place.weights:
            command += ["--weights", str(node.scratch("weights"))]
        _replace("launch.torchrun.engine_supervisor", command, environment)
    log = logs / f"{place.name}.log"
    print(f"darts: {place.name} on machine {node.number}; log: {log}", flush=True)
    rank = int(place.name[1:])
    environment |= learner_environment(rank, config.learner.ranks, place.port, place.host)
    environment["LOCAL_RANK"] = str(node.local_rank)
    arguments = learner_arguments(rank, config.learner.ranks, place.resume)
    if not shared:
        arguments += ["--apart", str(run / "parts" / place.name)]
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _replace("learner.learner_rank", [*hand_over(peer_keys, dump(config)), *arguments], environment)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings as key=value")
    parser.add_argument(
        "--out", type=Path, help="the run's folder; goes on with what is there, else a new one"
    )
    parser.add_argument(
        "--secret", type=Path, help="a file, the same on every machine: whoever lacks it is no rank"
    )
    args = parser.parse_intermixed_args()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise SystemExit("darts: start this by torchrun, or use `darts train` on one machine")
    os.umask(UMASK)
    die_with_parent()  # a torchrun that was killed leaves nobody behind
    try:
        config = load(args.config, args.overrides)
        args.seal = Seal(args.secret.read_bytes() if args.secret else b"")
        node = Node.of(os.environ)
        if node.machines > 1 and args.out is None:
            raise RunError("several machines need --out: a restart goes on with what is there")
        store = _store(node)
        if node.rank > 0:
            _other_rank(config, args, store, node)
        return _first_rank(config, args, store, node)
    except (
        ConfigError,
        PlacementError,
        RunError,
        TransportError,
        DataError,
        CheckpointError,
        OSError,
    ) as error:
        raise SystemExit(f"darts: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
