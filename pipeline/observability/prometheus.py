"""Tracker: the newest figures of a run over HTTP, for Prometheus to come and read.

Listens on 127.0.0.1 only: what leaves the machine is for a proxy or a Prometheus
on it to decide. Keeps nothing but the newest figures; every answer is made when it
is asked for, in the server's thread, from values that are replaced as a whole.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import prometheus_client
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from pipeline.coordinator.run_state import RunPhase
from pipeline.coordinator.token_ledger import FINAL
from pipeline.observability.live_status import RunStatus
from pipeline.observability.metrics_server import MetricsServer
from pipeline.observability.peer_user import readers
from pipeline.observability.timing import MEANINGS

LOOPBACK = "127.0.0.1"


class TrackerError(Exception):
    """A tracker that the configuration asks for cannot be used; names its key and the cure."""


def port_complaint(port: int, why: object) -> str:
    """The message for the user."""
    return (
        f"metrics.prometheus_port: cannot listen on {LOOPBACK}:{port}: {why}; "
        "choose another port, or 0 for none"
    )


def port_in_use(port: int) -> str:
    """Returns why the port cannot be opened; '' if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((LOOPBACK, port))
            probe.listen()
        except OSError as error:
            return error.strerror or str(error)
    return ""


# figure of a step or an evaluation -> (name without what it is of, unit last; help)
_FIGURES: dict[str, tuple[str, str]] = {
    "seconds": ("duration_seconds", "how long it took"),
    "reward": ("mean_reward", "mean reward of all responses that were scored"),
    "accuracy": ("accuracy_ratio", "share of the responses that are correct, on held-out prompts"),
    "tokens_mean": ("response_mean_tokens", "mean response length of all that ended"),
    "tokens_p95": ("response_p95_tokens", "95th percentile of response length"),
    "tokens_max": ("response_max_tokens", "longest response"),
    "tokens_sampled": ("sampled_tokens", "response tokens sampled"),
    "tokens_trained": ("trained_tokens", "response tokens trained on"),
    "trained_tokens_mean": ("trained_response_mean_tokens", "mean length of members trained on"),
    "sampled_per_trained": ("sampled_per_trained_ratio", "tokens sampled for each trained on"),
    "depth": ("depth_ratio", "longest member trained on over its group's median, mean"),
    "generation_s": ("generation_seconds", "from the first placement to the last end of a leg"),
    "bubble_engine": ("bubble_engine_ratio", "idle slot-seconds over slot-seconds"),
    "bubble_learner": ("bubble_learner_ratio", "share of the step in which ranks were idle"),
    "weights_proved": ("proved_loads", "loads of weights that engines proved"),
    "weights_unsure": ("unsure_loads", "loads that could be of the version before, or of a part"),
    "tensors_checked": ("checked_tensors", "published tensors that an engine compared, the fewest"),
    "tensors_published": ("published_tensors", "tensors of a version"),
    "truncated": ("truncated_ratio", "share of responses cut at the limit"),
}
# metric of the loss or of a rank -> help; what it means at length is in docs/run-folder.md
_LEARNER: dict[str, str] = {
    "loss": "the loss, over all tokens of the step",
    "ratio": "new over old probability of a token trained on, mean; 1 with one update",
    "clipped": "share of tokens whose ratio the loss clipped",
    "clip": "the loss's own clip of a response's ratio, mean over tokens",
    "mismatch": "old logprob of the learner against the engine's own, absolute, mean over tokens, "
    "in nats",
    "mismatch_max": "the largest such gap of a token, in nats",
    "kl": "divergence from the reference model, mean over tokens, in nats",
    "entropy": "the policy's entropy at a token, mean, in nats",
    "importance": "weight of a token's loss for old over behaviour probability, mean",
    "importance_cut": "share of tokens whose importance weight was cut",
    "rejected": "share of tokens of responses about which engine and learner disagree too much",
    "sure_turns": "share of tokens of turns that learner.turn_share leaves out",
    "left_out": "share of tokens that the loss leaves out",
    "mastered": "share of tokens that the loss takes to be mastered, and leaves out",
    "computed_share": "share of the step's tokens whose advantage is not 0, which are computed",
    "grad_norm": "norm of the gradient before clipping",
    "lr": "learning rate",
    "lr_scale": "what the loss multiplied the learning rate by, mean over the updates",
    "updates": "optimizer steps",
    "backward_s": "forward and backward passes of rank 0",
    "ahead_s": "logprobs that rank 0 computed ahead of their groups",
    "logprob_s": "forwards for old and reference logprobs",
    "logprob_hidden_s": "those forwards while groups of the step were still to come",
    "optimizer_s": "optimizer step of rank 0",
    "publish_s": "publishing of weights by rank 0",
    "micro_batch_tokens": "largest micro-batch allowed on rank 0, lower after a lack of memory",
}
_AUDIT: dict[str, str] = {
    "groups": "groups whose members trained on were compared with all candidates",
    "signal_lost": "groups dropped whose chosen members teach nothing, while all candidates would",
    "reward_shift": "mean reward of the members trained on minus that of all candidates",
    "tokens_shift": "mean length of the members trained on minus that of all candidates, tokens",
    "advantage_moved": "absolute change of a member's advantage by selection, mean",
}
_ENGINES: dict[str, str] = {
    "legs": "legs of trajectories that the engine ran",
    "tokens": "response tokens that it sampled",
    "inter_token_s": "its median time between tokens",
}
# percentile -> value of the label `quantile`, as Prometheus' own summaries have it
_QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}
# nested figures -> (name, its label, help)
_LABELLED: dict[str, tuple[str, str, str]] = {
    "groups": ("groups", "fate", "groups that ended, by fate and reason"),
    "parts": ("reward_part", "part", "mean of each part of the rewards"),
    "by_tag": ("tag_mean_reward", "tag", "mean reward by kind of prompt"),
    "tokens_by_tag": ("tag_response_mean_tokens", "tag", "mean length by kind of prompt"),
    "audit/advantage_shift_by_kind": (
        "audit_advantage_shift",
        "kind",
        "advantage of a member trained on minus its own among all candidates, in an audited step",
    ),
    "audit/members_by_kind": (
        "audit_members",
        "kind",
        "members trained on whose advantages were compared, by kind, in an audited step",
    ),
}
_LEFT_OUT = ("step", "version", "ledger")  # reported once a second, see `_now`
_OF = {"step": "of the newest step", "eval": "of the newest evaluation"}
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_]+")


class Prometheus(Collector):
    """Serves `http://127.0.0.1:PORT/metrics` until it is closed."""

    def __init__(self, port: int, group: str = "") -> None:
        """Raises TrackerError if the port is taken.

        Args:
            group: its members may read, beside this user.
        """
        self._metrics: dict[str, Mapping[str, float]] = {}
        self._live: RunStatus | None = None
        registry = CollectorRegistry()
        registry.register(self)
        media = prometheus_client.CONTENT_TYPE_LATEST
        try:
            self._server = MetricsServer(
                LOOPBACK, port, lambda: generate_latest(registry), media, readers(group)
            )
        except OSError as error:
            raise TrackerError(port_complaint(port, error.strerror or error)) from error

    def log_metrics(self, what: str, step: int, numbers: Mapping[str, float]) -> None:
        self._metrics = {**self._metrics, what: dict(numbers)}

    def log_status(self, now: RunStatus) -> None:
        self._live = now

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing: it has no tables of text."""

    def close(self) -> None:
        self._server.close()

    def collect(self) -> Iterator[Metric]:
        """Called by the server's thread at every request."""
        for what, numbers in self._metrics.items():
            yield from _of_timing(numbers) if what == "timing" else _of_metrics(what, numbers)
        if self._live is not None:
            yield from _now(self._live)


def _of_metrics(what: str, numbers: Mapping[str, float]) -> Iterator[Metric]:
    labelled: dict[str, GaugeMetricFamily] = {}
    for key, value in numbers.items():
        first, _, rest = key.partition("/")
        if first in _LEFT_OUT:
            continue
        if nest := next((nest for nest in _LABELLED if key.startswith(f"{nest}/")), ""):
            name, label, text = _LABELLED[nest]
            if nest not in labelled:
                full = f"darts_{what}_{name}"
                labelled[nest] = GaugeMetricFamily(full, f"{text}, {_OF[what]}", labels=[label])
            labelled[nest].add_metric([key.removeprefix(f"{nest}/")], value)
            continue
        name, text = _FIGURES.get(key) or (_name(key), _help(first, rest))
        yield GaugeMetricFamily(f"darts_{what}_{name}", f"{text}, {_OF[what]}", value=value)
    yield from labelled.values()


def _help(first: str, rest: str) -> str:
    if first == "learner" and rest in _LEARNER:
        return _LEARNER[rest]
    if first == "audit" and rest in _AUDIT:
        return f"{_AUDIT[rest]}, in an audited step"
    return f"{': '.join(filter(None, (first, rest)))} as in metrics.jsonl"


def _of_timing(numbers: Mapping[str, float]) -> Iterator[Metric]:
    """Latencies of the newest step by percentile, each engine's pace, and idle reward workers."""
    found: dict[str, GaugeMetricFamily] = {}

    def add(name: str, text: str, value: float, **labels: str) -> None:
        if name not in found:
            text = f"{text}, {_OF['step']}"
            found[name] = GaugeMetricFamily(f"darts_{name}", text, labels=list(labels))
        found[name].add_metric(list(labels.values()), value)

    for key, value in numbers.items():
        kind, _, rest = key.partition("/")
        if kind == "percentiles":
            name, _, which = rest.partition("/")
            text, bare = MEANINGS.get(name, name), name.removesuffix("_s")
            if which in _QUANTILES:
                add(f"latency_{_name(name)}", text, value, quantile=_QUANTILES[which])
            elif which == "max":
                add(f"latency_{bare}_max_seconds", f"the longest: {text}", value)
            elif which == "count":
                add(f"latency_{bare}_count", f"how many were measured: {text}", value)
        elif kind == "engines":
            engine, _, name = rest.partition("/")
            add(f"engine_step_{_name(name)}", _ENGINES.get(name, name), value, engine=engine)
        elif key == "bubble_reward":
            add(
                "step_bubble_reward_ratio",
                "share of the reward workers' time that lay idle",
                value,
            )
    yield from found.values()


def _name(key: str) -> str:
    """A figure without an entry of its own, its unit spelled out.

    >>> _name("learner/backward_s")
    'learner_backward_seconds'
    """
    return re.sub(r"_s$", "_seconds", _NOT_IN_A_NAME.sub("_", key))


def _gauge(name: str, text: str, values: Mapping[str, float], label: str) -> Metric:
    found = GaugeMetricFamily(f"darts_{name}", text, labels=[label])
    for key, value in values.items():
        found.add_metric([key], value)
    return found


def _now(now: RunStatus) -> Iterator[Metric]:
    """Figures of what the run does now, and where every sampled token went."""
    tokens = CounterMetricFamily(
        "darts_response_tokens", "sampled response tokens by where they went", labels=["fate"]
    )
    for account in FINAL:
        tokens.add_metric([account], now.ledger.get(account, 0))
    yield tokens
    held = {account: n for account, n in now.ledger.items() if account not in FINAL}
    yield _gauge("held_tokens", "response tokens of live trajectories", held, "state")
    phases = {phase.value: float(phase.value == now.phase) for phase in RunPhase}
    yield _gauge("phase", "1 for the phase that the run is in", phases, "phase")
    for name, text, value in (
        ("steps_done", "steps done", now.step),
        ("steps_planned", "steps of the run", now.steps),
        ("training_seconds", "inside steps that are done", now.training_seconds),
        ("queued_trajectories", "trajectories that wait for a slot", now.queued),
        ("evaluating_prompts", "held-out prompts not scored yet", now.evaluating),
        ("queued_rewards", "rewards that wait for a worker", now.rewards_queued),
        ("running_rewards", "rewards being computed", now.rewards_running),
        ("update_timestamp_seconds", "when these figures were taken", now.time),
    ):
        yield GaugeMetricFamily(f"darts_{name}", text, value=value)
    if now.paced:
        yield _gauge("paced", "1: times are emulated, at this pace", {now.paced: 1.0}, "pace")
    yield _gauge("live_groups", "live training groups by stage", now.groups, "stage")
    longest = max((wait.seconds for wait in now.waits), default=0.0)
    yield GaugeMetricFamily(
        "darts_longest_wait_seconds",
        "how long the longest wait of the run has lasted; live.json says who waits for whom",
        value=longest,
    )
    yield _gauge("learner_groups", "groups not trained on yet, by rank", now.at_rank, "rank")
    yield _gauge("refused_frames", "frames and chunks not believed", now.refused, "what")
    engines = now.engines
    for name, text, values in (
        ("engine_running_sequences", "slots in use", {e.name: e.running for e in engines}),
        ("engine_slots", "slots", {e.name: e.slots for e in engines}),
        ("engine_version", "policy version served, -1: none", {e.name: e.version for e in engines}),
        ("engine_loading", "1 while it loads weights", {e.name: e.loading >= 0 for e in engines}),
    ):
        yield _gauge(name, text, values, "engine")
    silent = {peer.name: peer.heard_s for peer in now.peers}
    yield _gauge("peer_silence_seconds", "since it was last heard of", silent, "peer")
