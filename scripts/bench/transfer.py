"""Compares sending weights to another machine with copying the same file.

    python -m scripts.bench.transfer [--parameters 0.5e9] [--repeats 3] [--out FILE]

Publishes random bfloat16 parameters in one network namespace and fetches them in another as an
engine does: TCP, CURVE, checked against the manifest. In turn with this, it copies the file within
/dev/shm, without and with a check. Needs root, and three times the file's size in /dev/shm.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
import xxhash

from engines.weights import FILE, WeightReceiver
from engines.weights_fetch import FetchingReceiver
from pipeline.system.temp_dirs import SHARED_MEMORY
from pipeline.wire.curve_auth import new_pair
from pipeline.wire.keys import KeyOwner, ListenKeys, PeerKeys, read_private, write_private
from pipeline.wire.messages import Manifest
from pipeline.wire.server import StageServer
from scripts.bench.namespaces import (
    ADDRESSES,
    Machines,
    environment,
    two_machines,
    why_not,
)
from scripts.bench.program import options_parser, write_json

_PORTS = (41001, 41002, 41003)
_BLOCK = 1 << 24


def publish_random(directory: Path, parameters: int) -> Manifest:
    """Writes a version 0 of random bfloat16 numbers."""
    (directory / "v0").mkdir(parents=True)
    path = directory / "v0" / FILE
    generator, digest, left = np.random.default_rng(0), xxhash.xxh3_128(), 2 * parameters
    with path.open("wb") as file:
        while left:
            block = generator.bytes(min(_BLOCK, left))
            digest.update(block)
            left -= file.write(block)
    return Manifest(
        version=0,
        directory=str(path.parent),
        bytes=path.stat().st_size,
        checksum=digest.hexdigest(),
        probe=[],
        logprobs={},
    )


def serve_weights(keys: Path, weights: Path) -> None:
    """Serves the weights as the stage does, until it is killed."""

    async def attend() -> None:
        server = StageServer(keys.parent / "sockets", read_private(keys, ListenKeys), [weights])
        server.open_sockets()
        await server.serve_peers()

    asyncio.run(attend())


def fetch_weights(keys: Path, manifest: Path, into: Path) -> None:
    """Fetches the weights as an engine does; prints the seconds."""
    receiver = FetchingReceiver(read_private(keys, PeerKeys), into)
    published = msgspec.json.decode(manifest.read_bytes(), type=Manifest)
    started = time.monotonic()
    receiver.receive(published)
    print(time.monotonic() - started, flush=True)


def write_keys(folder: Path) -> tuple[Path, Path]:
    """Writes the key files of both sides."""
    control, data, weights = (f"tcp://{ADDRESSES[0]}:{port}" for port in _PORTS)
    server, client = new_pair(), new_pair()
    listen_keys = ListenKeys(
        control=control,
        data=data,
        weights=weights,
        keys=server,
        allowed={client.public: KeyOwner("engine", "e0")},
    )
    peer_keys = PeerKeys(
        control=control, data=data, weights=weights, server=server.public, keys=client
    )
    return write_private(folder / "stage.key", listen_keys), write_private(
        folder / "e0.key", peer_keys
    )


def measure_transfer(
    machines: Machines, folder: Path, parameters: int, repeats: int
) -> dict[str, object]:
    """Measures the seconds of each way, in turn."""
    manifest = publish_random(folder / "published", parameters)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    stage, peer_keys = write_keys(folder)
    module = [sys.executable, "-m", "scripts.bench.transfer"]
    serving = subprocess.Popen(
        machines.command_on(0, [*module, "--serve", str(stage), str(folder / "published")]),
        env=environment(),
    )
    source, into = folder / "published" / "v0" / FILE, folder / "here"
    found: dict[str, list[float]] = {"fetched": [], "copied": [], "copied and checked": []}
    try:
        for _ in range(repeats):
            asked = [*module, "--fetch", str(peer_keys), str(folder / "manifest.json"), str(into)]
            done = subprocess.run(
                machines.command_on(1, asked), env=environment(), check=True, stdout=subprocess.PIPE
            )
            found["fetched"].append(float(done.stdout))
            shutil.rmtree(into)
            copied = folder / "copied" / FILE
            copied.parent.mkdir()
            started = time.monotonic()
            shutil.copyfile(source, copied)
            found["copied"].append(time.monotonic() - started)
            WeightReceiver().receive(
                msgspec.structs.replace(manifest, directory=str(copied.parent))
            )
            found["copied and checked"].append(time.monotonic() - started)
            shutil.rmtree(copied.parent)
    finally:
        serving.kill()
        serving.wait()
    return {"bytes": manifest.bytes, "seconds": found}


def main() -> int:
    parser = options_parser(__doc__, repeats=3)
    parser.add_argument("--parameters", type=float, default=0.5e9, help="size of the weights")
    parser.add_argument("--serve", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fetch", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_weights(*options.serve)
    if options.fetch:
        fetch_weights(*options.fetch)
        return 0
    if reason := why_not():
        print(f"skipped: {reason}", file=sys.stderr)
        return 2
    with (
        two_machines() as machines,
        tempfile.TemporaryDirectory(dir=SHARED_MEMORY, prefix="transfer-") as folder,
    ):
        metrics = measure_transfer(machines, Path(folder), int(options.parameters), options.repeats)
    size, seconds = metrics["bytes"], metrics["seconds"]
    assert isinstance(size, int)
    assert isinstance(seconds, dict)
    print(f"{size / 1e9:.2f} GB\n\n| way | s, median | MB/s |\n|---|---|---|")
    for way, times in seconds.items():
        middle = statistics.median(times)
        print(f"| {way} | {middle:.2f} | {size / middle / 1e6:.0f} |")
    write_json(options.out, metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
