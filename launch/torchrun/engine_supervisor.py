"""Keeps one engine running beside a job that is started elsewhere.

    python -m launch.torchrun.engine_supervisor --scratch DIR --name e0 --logs DIR [--weights DIR]

Under torchrun every engine's rank becomes a supervisor. It restarts an engine that dies, so that
torchrun does not restart the whole job. It ends when its engine has ended normally, or has died
more than `engine.restarts` times.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from engines.base import READY
from launch.launcher.environment import clean_environment
from launch.launcher.oom import MemoryWatch, own_groups
from launch.launcher.processes import Child, end_all, engine_environment
from launch.launcher.starting import StartingParts
from launch.torchrun.node import CONFIG, join_arguments, write_join_files
from pipeline.config.load import load
from pipeline.system.temp_dirs import remove_orphans, shared_directory
from pipeline.wire.keys import PeerKeys, read_private

_POLL_S = 0.2
_MOST_S = 60.0


def supervise(
    child: Child, restarts: int, stopped: list[int], starting: StartingParts | None = None
) -> int:
    """Starts the engine and restarts it when it dies, unless it ends by itself before it has ever
    loaded its model: it would again. Returns the exit status."""
    began = False
    memory = MemoryWatch(own_groups())
    child.start()
    while not stopped:
        time.sleep(_POLL_S)
        child.sample_memory()
        if starting is not None:
            for text in starting.look(time.monotonic(), {child.name: child.doing()}):
                print(f"darts: {text}", flush=True)
        how = child.take_exit()
        if how == "exit 0":
            return 0
        if how is not None:
            began = began or child.said(READY)
            hopeless = how.startswith("exit ") and not began
            how = f"({how}){child.memory_note(how, memory)}"
            print(f"darts: {child.name} ended {how}; its log: {child.log}", flush=True)
            if hopeless:
                print(f"darts: {child.name} could not start: {child.reason()}", flush=True)
            if hopeless or child.starts > restarts:
                print(f"darts: {child.name}: end of its log:\n{child.tail()}", flush=True)
                return 1
            child.next_start = time.monotonic() + min(_MOST_S, 2.0 ** (child.starts - 1))
        elif child.next_start and time.monotonic() >= child.next_start:
            child.next_start = 0.0
            child.start()
    return 128 + stopped[0]


def guest_arguments(key: Path, name: str) -> list[str]:
    """Returns the arguments for an engine that joins with the key file of a running job.

    Raises: TransportError if the file is not one.
    """
    peer_keys = read_private(key, PeerKeys)
    own = shared_directory(os.getpid(), name)  # `exec` keeps the process id
    write_join_files(own, peer_keys, peer_keys.config)
    arguments = ["--scratch", str(own), "--name", name, "--logs", str(Path.cwd())]
    return [*arguments, "--weights", str(own / "weights")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scratch", type=Path, required=True, help="directory with stage.key and config.yaml"
    )
    parser.add_argument("--name", required=True, help="name of the engine")
    parser.add_argument("--logs", type=Path, required=True, help="directory of its log")
    parser.add_argument("--weights", type=Path, help="directory for weights that are fetched")
    options = parser.parse_args()

    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.append(number))
    remove_orphans()
    command = ["engines.worker", "--name", options.name, *join_arguments(options.scratch)]
    if options.weights is not None:
        command += ["--weights", str(options.weights)]
    log = options.logs / f"{options.name}.log"
    environment = clean_environment() | engine_environment(options.scratch)
    child = Child(options.name, command, log, environment)
    try:
        config = load(options.scratch / CONFIG)
        starting = StartingParts(config.timeouts.log_wait_s)
        status = supervise(child, config.engine.restarts, stopped, starting)
    finally:
        end_all([child], 0.0 if stopped else 5.0)
        for directory in (options.scratch, options.weights):
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
