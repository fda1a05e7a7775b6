"""The same job under torchrun, on one machine or several, roles by rank:

    torchrun --nproc-per-node=P -m launch.torchrun CONFIG [key=value ...] [--out DIR]
    torchrun --nnodes=N --node-rank=K --nproc-per-node=P --master-addr=HOST --master-port=PORT
        -m launch.torchrun CONFIG [key=value ...] --out DIR      (on machine K of N, from 0)

N times P is learner.ranks + engine.count; `nodes.learners` says which ranks are learners. Rank 0
also starts the stage and keeps the run's folder. Torchrun's store carries addresses and public
keys, never a secret. The learner ranks form a process group of their own; every other rank
replaces itself (same process id, so torchrun still watches it). When torchrun restarts its workers
(--max-restarts), or is started again with the same --out, the run continues from its newest
checkpoint. docs/nodes.md is the guide.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from launch.commands.resume import check_fits, keep_changes, refuse_finished, resume_status
from launch.commands.train import identify, never_began, print_outcome, was_ever_saved
from launch.launcher import gpus
from launch.launcher.environment import clean_environment
from launch.launcher.local import Launcher, Roles
from launch.launcher.processes import (
    die_with_parent,
    learner_arguments,
    learner_environment,
)
from launch.monitor.bounded_output import bounded_output, tell_losses_in
from launch.monitor.terminal import TerminalView
from launch.options import user_path
from launch.preflight.everything import PreflightError, check_everything
from launch.preflight.settings import settings_problems
from launch.preflight.without_effect import without_effect
from launch.torchrun import run_location
from launch.torchrun.agent import warning_of_parent
from launch.torchrun.network import interface_towards
from launch.torchrun.node import (
    Node,
    RoundPlan,
    config_digest,
    join_arguments_in_memory,
    make_site,
    write_join_files,
)
from launch.torchrun.rendezvous import (
    Assignment,
    Hello,
    RendezvousError,
    RunPlace,
    SharedSecret,
    host_rendezvous,
    join_rendezvous,
    read_message,
    read_secret,
    store_answers,
)
from launch.torchrun.roles import RolesError, check_world
from pipeline.checkpoint.store import CheckpointError, newest
from pipeline.config.load import ConfigError, dump, load
from pipeline.config.paths import names_without_commit
from pipeline.config.schema import Config
from pipeline.data.files import DataError
from pipeline.observability.recorder import Records
from pipeline.system.descriptors import occupy_standard_streams, raise_limit
from pipeline.system.private_dirs import UMASK
from pipeline.system.python_path import SAFE, user_folder_last
from pipeline.system.run_folder import RunError, RunFolder, new_name
from pipeline.system.terminal_text import printable
from pipeline.system.untrusted_files import UnreadableFile, read_bytes
from pipeline.system.utf8_mode import use_utf8
from pipeline.wire.curve_auth import new_pair
from pipeline.wire.keys import PeerKeys, TransportError

_STORE_S = 300.0
_RUN = "darts/run"
_REFUSALS = (
    *(ConfigError, RolesError, RunError, TransportError, DataError, CheckpointError),
    PreflightError,
    RendezvousError,
)


def _store(node: Node) -> Any:
    """Opens torchrun's store, or rank 0's if TORCH_DISABLE_SHARE_RDZV_TCP_STORE is set."""
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and node.rank == 0
    limit = timedelta(seconds=_STORE_S)
    if ours:
        from learner.rank_store import bound_store

        return bound_store(address, port, limit)
    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=limit)


def _replace(module: str, arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Becomes another program under the same process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    words = [sys.executable, SAFE, "-u", "-m", module, *arguments]
    os.execve(sys.executable, words, environment)  # noqa: S606


# --- rank 0 -----------------------------------------------------------------------------------


def _open_run(config: Config, args: argparse.Namespace, store: Any) -> RunFolder:
    """Opens and locks the run's folder: a new one, or this job's earlier one. Raises RunError."""
    secret: SharedSecret = args.secret
    # Without --out a restart finds the run by a word of ours; of somebody else's none counts.
    before = None if args.out else read_message(store, secret, _RUN, RunPlace)
    if before is not None:
        run = RunFolder(Path(before.path))
    else:
        run = RunFolder(args.out or new_name(Path("runs") / args.config.stem))
    run.make_folders()
    run.hold_lock()
    run_location.refuse_moved_run(run)
    refuse_finished(run, config)
    store.set(_RUN, secret.sign_message(_RUN, RunPlace(path=str(run.path))))
    return run


def _resume_point(config: Config, given: Path, run: RunFolder) -> Path | None:
    """Returns the newest checkpoint; starts the run from scratch if none was ever written.

    Args:
        given: file of the configuration.

    Raises: RunError if the folder holds a run with other settings, CheckpointError if no
    checkpoint is complete and fits.
    """
    other = run.config.exists() and read_bytes(run.config) != dump(config).encode()
    if not was_ever_saved(run):
        if other and not never_began(run):
            raise RunError(
                f"{run.path}: holds a run with another configuration and no checkpoint; choose "
                "another --out"
            )
        Records.truncate_files(run, {})  # of an attempt that left no checkpoint
        identify(run, config)
        return None
    resume, manifest, complaints = newest(run.checkpoints)
    for line in complaints:
        print(f"darts: skipped a damaged checkpoint: {line}", flush=True)
    check_fits(resume, manifest, config, f"{given} or the settings of this command")
    for line in keep_changes(run, _settings_of(run), config, manifest) if other else ():
        print(f"darts: {line}", flush=True)
    print(f"darts: resuming {run.path} at step {manifest['step']}", flush=True)
    return resume


def _settings_of(run: RunFolder) -> Config | None:
    """Returns the settings of an earlier round; None if this version of darts cannot read them."""
    try:
        return load(run.config)
    except ConfigError:
        return None


def _first_rank(config: Config, args: argparse.Namespace, store: Any, node: Node) -> int:
    """Runs rank 0: run folder, stage and learner rank 0. Returns the exit status."""
    if problems := settings_problems(config):
        raise RunError("\n".join(problems))
    run = _open_run(config, args, store)
    resume = _resume_point(config, args.config, run)
    said = without_effect(config) if resume else check_everything(config)
    for line in filter(None, (*said, warning_of_parent())):
        print(f"darts: {printable(line)}", flush=True)
    plan = RoundPlan.for_job(config, node)
    digest = config_digest(config)
    run_location.write_round(run.path, plan.round)

    def answer(hellos: Mapping[int, Hello]) -> dict[int, Assignment]:
        return plan.assignments(hellos, run, resume, digest)

    try:
        hellos = host_rendezvous(store, args.secret, node.world, answer, config.timeouts.join_s)
    except RendezvousError as error:
        raise RunError(str(error)) from None
    if refused := {assignment.refused for assignment in answer(hellos).values()} - {""}:
        raise RunError("; ".join(sorted(refused)))
    site = make_site(plan, hellos, run, dump(config))
    _name_interface(os.environ, plan.host)
    tell_losses_in(run.logs / "launcher.log")
    view = TerminalView(config.step.count, name=run.path.name)
    launcher = Launcher(config, run, view, resume, Roles(engines=0, ranks=[0]), site)
    print(f"run: {run.path}", flush=True)
    try:
        status = launcher.run_job()
    finally:
        view.close()
        (run.path / "join.key").unlink(missing_ok=True)
        run_location.remove_round(run.path)
        run.release_lock()
    print_outcome(run, config, status, launcher.error)
    return status


def _name_interface(environment: MutableMapping[str, str], host: str) -> None:
    """Has gloo and NCCL listen only at the interface that leads to rank 0."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        environment.setdefault(name, interface_towards(host))


# --- the others -------------------------------------------------------------------------------


def _other_rank(config: Config, args: argparse.Namespace, store: Any, node: Node) -> NoReturn:
    """Joins rank 0, then becomes a learner rank or the supervisor of an engine."""
    pair, number = new_pair(), secrets.token_hex(16)
    hello = Hello(number=number, node=node.number, key=pair.public, config=config_digest(config))
    try:
        assignment = join_rendezvous(store, args.secret, node.rank, hello, config.timeouts.join_s)
    except RendezvousError as error:
        raise RunError(f"rank {node.rank}: {error}") from None
    peer_keys = PeerKeys(
        control=assignment.control,
        data=assignment.data,
        weights=assignment.weights,
        server=assignment.server or None,
        keys=pair if assignment.server else None,
    )
    run = Path(assignment.run)
    logs = node.logs(run)
    shared = run_location.is_shared(run, assignment.round)
    if not shared:
        run_location.write_location(run, assignment.host)
    environment = clean_environment()
    _name_interface(environment, assignment.host)
    if assignment.name.startswith("e"):
        environment |= gpus.engine_gpus(
            gpus.machine_gpus(environment),
            assignment.learners,
            node.local_rank - assignment.learners,
            config.engine.tensor_parallel,
        )
        own = node.scratch(assignment.name)
        write_join_files(own, peer_keys, dump(config))
        command = ["--scratch", str(own), "--name", assignment.name, "--logs", str(logs)]
        if assignment.weights:
            command += ["--weights", str(node.scratch("weights"))]
        _replace("launch.torchrun.engine_supervisor", command, environment)
    log = logs / f"{assignment.name}.log"
    print(f"darts: {assignment.name} on machine {node.number}; log: {log}", flush=True)
    rank = int(assignment.name[1:])
    environment |= learner_environment(
        rank, config.learner.ranks, assignment.port, assignment.host, assignment.ranks_store
    )
    environment["LOCAL_RANK"] = str(node.local_rank)
    tokens = assignment.micro_batch_tokens
    arguments = learner_arguments(rank, config.learner.ranks, assignment.resume, tokens)
    if not shared:
        arguments += ["--no-shared-fs", str(run / "parts" / assignment.name)]
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _replace(
        "learner.learner_rank",
        [*join_arguments_in_memory(peer_keys, dump(config)), *arguments],
        environment,
    )


def main() -> int:
    use_utf8()
    occupy_standard_streams()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="YAML file with the settings")
    parser.add_argument("overrides", nargs="*", help="settings as key=value")
    parser.add_argument(
        "--out", type=user_path, help="folder of the run; a run that is there is continued"
    )
    parser.add_argument(
        "--secret", type=user_path, help="file with a secret that every rank must have"
    )
    args = parser.parse_intermixed_args()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        raise SystemExit("darts: start this with torchrun, or use `darts train` on one machine")
    os.umask(UMASK)
    raise_limit()  # survives `exec`
    user_folder_last()
    die_with_parent()  # a killed torchrun leaves no process behind
    node = Node.from_torchrun(os.environ)
    try:
        config = load(args.config, args.overrides)
        written = " ".join([args.config.read_text("utf-8"), *args.overrides])
        if loose := names_without_commit(config, written):
            why = "every machine, and a restart, must read the same commit: name it"
            raise RunError(f"{why}, as in {', '.join(loose)}")
        args.secret = read_secret(args.secret)
        check_world(node.world, config)  # before any folder is made
        if node.machines > 1 and args.out is None:
            raise RunError("several machines need --out, so that a restart finds the run")
        with store_answers():
            store = _store(node)
        if node.rank > 0:
            _other_rank(config, args, store, node)
        with bounded_output():
            return _first_rank(config, args, store, node)
    except (*_REFUSALS, UnreadableFile, OSError) as error:
        return _refused(error, node)


def _refused(error: Exception, node: Node) -> int:
    """Says why the job cannot start: rank 0 on the terminal, and every rank in the file from which
    torchrun makes its own report. Returns the exit status, as everywhere."""
    text = printable(str(error))
    if node.rank == 0 or node.local_rank == 0:
        print(f"darts: {text}", file=sys.stderr, flush=True)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"py_callstack": "", "timestamp": str(int(time.time()))}
        told = {"message": {"message": f"darts: {text}", "extraInfo": extra}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(told), encoding="utf-8")
    return resume_status(error)


if __name__ == "__main__":
    sys.exit(main())
