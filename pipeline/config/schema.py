"""Every setting, one frozen Struct a section, with its meaning, unit and default.

A part of darts receives its own section, never the whole configuration.
A field's type holds its range or its choices; rules over several keys are in
`pipeline.config.rules`. A plug-in's key holds its name and its options.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from pipeline.config import setting_types as allowed
from pipeline.config.debug import DebugConfig
from pipeline.config.evaluation import EvalConfig
from pipeline.config.metrics import MetricsConfig
from pipeline.config.nodes import NodesConfig
from pipeline.config.pace import EnginePace, LearnerPace, WeightsConfig, paced_text
from pipeline.config.placement import PlacementConfig
from pipeline.config.rollouts import RolloutsConfig
from pipeline.config.setting_types import Plugin, Section
from pipeline.config.timeouts import TimeoutsConfig
from pipeline.plugins.ranges import (
    AtLeastOne,
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
    zero_or,
)


class SourceConfig(Section, frozen=True, kw_only=True):
    path: allowed.DataPath
    """A task, a file, a folder, or a pattern, as for `data.train`."""
    weight: PositiveFloat = 1.0
    """Prompts of this source for each one of a source with weight 1, whatever their sizes."""
    tag: str = ""
    """Kind of these prompts, for budgets and by-kind figures. Empty: the data's own."""
    prompt: allowed.OptionalFieldName = ""
    """Field that holds the prompt, in this source. Empty: `data.prompt`."""
    answer: allowed.OptionalFieldName = ""
    """Field that holds the answer, in this source. Empty: `data.answer`."""


class DataConfig(Section, frozen=True, kw_only=True):
    train: str | tuple[SourceConfig, ...] = "chain_sums"
    """A built-in task (`chain_sums`, `deep_sums`, `long_sums`, `loong`, `mixed_sums`); a JSONL or
    parquet file; a folder of such files or of `datasets`' `save_to_disk`; a pattern
    (`data/*.parquet`); a name on the Hugging Face hub (`openai/gsm8k:main`, docs/data.md); or a
    list of these with weights."""
    held_out: str | Annotated[int, Meta(ge=0, description="at least 0, or a file")] = 256
    """Prompts for evaluation: as `train` (of a task 256), or this many of the held-out prompts of
    the task, or of the split `test` or `validation` of the folder, that is trained on. From other
    data a number takes none, and nothing is evaluated."""
    prompt: allowed.FieldName = "prompt"
    """Field that holds the prompt: text, or a list of chat messages. `a.b` is b inside of a."""
    answer: allowed.OptionalFieldName = ""
    """Field that holds what the reward compares with, `a.b` likewise; `none`: there is none. Empty:
    `answer`, `reward_model.ground_truth` or `solution`, the first that a row of a source has."""
    variants: tuple[allowed.FieldName, ...] = ()
    """Fields whose text a plug-in may put behind the prompt of some members, as a hint: each line
    that is trained on must have them. They count with the prompt where its length is limited."""
    solution: allowed.OptionalFieldName = ""
    """Field with a worked solution as the model would write it, which a plug-in may put into the
    prompt's group as one more response; lines may lack it. Empty: none."""
    bad_lines: Literal["stop", "skip"] = "stop"
    """Action on a malformed line: `stop` before anything starts, or `skip` it, with a count."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Prompts that go through the chat template: `auto` messages, and no text; `always` text too,
    as the user's message; `never` none, and messages are refused."""
    chat_template: str = ""
    """File with a chat template (Jinja). Empty: the model's own."""
    chat_arguments: dict[str, Any] = {}  # noqa: RUF012  copied by msgspec
    """Arguments of the template, by name: `{enable_thinking: false}`."""
    system: str = ""
    """System message put before messages that have none of their own."""
    max_prompt_tokens: NonNegativeInt = 0
    """Longest prompt, tokens, after the template. 0: what the model takes, less
    `sampling.max_tokens`."""
    long_prompts: Literal["stop", "drop", "cut"] = "stop"
    """Action on a longer prompt: treat it as a bad line (`stop`), leave it out (`drop`) or, if it
    is text, shorten it from the left (`cut`), with a count."""


class SamplingConfig(Section, frozen=True, kw_only=True):
    temperature: PositiveFloat = 1.0
    """Temperature of training samples, above 0. The learner divides its logits by the same. There
    is no `top_p` here: training samples from all tokens (docs/engines.md)."""
    max_tokens: PositiveInt = 128
    """Longest response, tokens."""
    stop: tuple[NonEmpty, ...] = ()
    """Texts that end a response, beside the model's own stop tokens; they stay in it. For responses
    of one turn, also in evaluations: an `environment` has a `stop` of its own."""
    markers: tuple[NonEmpty, ...] = ()
    """Texts that show that a response has come to its answer, such as `\\boxed{`: selectors are
    told of the first of them (`MemberView.marked`)."""


class StepConfig(Section, frozen=True, kw_only=True):
    count: NonNegativeInt = 60
    """Steps of the run: a batch and a new policy version each. 0: evaluate, with no learner."""
    prompts: PositiveInt = 16
    """Groups trained on in one step."""
    reserve: NonNegativeInt = 0
    """Groups opened beyond those needed: what is open at the close is deferred."""
    reserve_share: NonNegativeFloat = 0.0
    """The same as a share of `prompts`, rounded to the nearest, halves up; added to `reserve`."""
    tries: AtLeastOne = 2.0
    """A step opens at most tries x prompts groups; then it closes with those it has."""
    keep: NonNegativeInt = 0
    """Groups kept after they were trained on, the newest ones, for a batch rule that replays. 0:
    none."""
    keep_versions: PositiveInt = 4
    """Versions that a token of a kept group may be behind the newest weights."""
    hold: Annotated[float, zero_or(1, zero="any number")] = 0.0
    """A selector that holds groups back with too few candidates (`pilot_commit`) has at most
    hold x prompts of them, those included of which it has yet to judge; no prompt is opened beyond
    that. 0: any number."""


class GroupConfig(Section, frozen=True, kw_only=True):
    size: Annotated[int, Meta(ge=2)] = 8
    """M: trajectories trained on per prompt."""


class WorkersConfig(Section, frozen=True, kw_only=True):
    count: PositiveInt = 1
    """Worker processes for the reward, and as many for the environment; each has one call at a
    time."""
    limit_s: PositiveFloat = 10.0
    """Seconds one call may take; then its worker is killed and the call has failed."""
    fail_share: Share = 0.2
    """Stop the run when more than this share of the last 50 calls failed."""
    memory_gib: Annotated[float, zero_or(0.25, zero="no limit")] = 8.0
    """Address space of a worker, GiB; more is a MemoryError. 0: no limit."""
    cpu_s: Annotated[float, zero_or(1, zero="no limit")] = 60.0
    """CPU seconds of one call, over all threads; then its worker is killed. 0: no limit."""
    file_mib: NonNegativeFloat = 100.0
    """Longest file that a worker may write, MiB; 0: no limit."""
    open_files: Annotated[int, zero_or(16, zero="no limit")] = 256
    """Files that a worker may have open at once; 0: no limit."""
    processes: NonNegativeInt = 64
    """Processes that a worker and what it has started may be at once; then they are all killed. 0:
    no limit."""
    env: tuple[str, ...] = ()
    """Variables that workers see although they look like secrets: names with KEY, TOKEN, SECRET and
    the like, and values with a login in them, are taken out of their environment."""


class LoraConfig(Section, frozen=True, kw_only=True):
    rank: PositiveInt = 16
    """Rank of the adapters: each adds two matrices of so many rows and columns."""
    alpha: PositiveFloat = 32.0
    """Scale of the adapters: their product counts alpha / rank times."""
    dropout: allowed.NoDropout = 0.0
    """Only 0: with dropout the learner's logprobs are not those of what the engines serve."""
    targets: allowed.LayerNames = ("all-linear",)
    """Names of the linear layers that get adapters (`q_proj`, `v_proj`); `all-linear`: all but the
    output layer."""


class LearnerConfig(Section, frozen=True, kw_only=True):
    ranks: PositiveInt = 1
    """Data-parallel learner processes."""
    zero: allowed.ZeroStage = 0
    """DeepSpeed ZeRO stage, 0 to 3: 1 shares out the optimizer's state; 2 also the reduced gradient
    (each rank's own is whole until the step closes); 3 also the weights, and then everything but
    the reference model runs when the step closes, all ranks together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of the weights that are trained: `float32`, or `bfloat16`, with float32 master
    weights, gradient sums and optimizer state (needs `zero` 1 to 3, which keep them)."""
    attention: allowed.Attention = "auto"
    """Attention function, by transformers' names: `sdpa`, `eager` (plain matrix products), or
    `auto`: eager where a layer caps its scores, sdpa elsewhere."""
    gradient_checkpointing: bool = False
    """Keep the inputs of the layers only, and compute the layers again in backward: less memory,
    about a third more time."""
    lora: LoraConfig | None = None
    """Train low-rank adapters in place of the weights (needs `pip install 'darts-rl[lora]'`; `zero`
    0 to 2). The engines serve them merged. Null: train all weights."""
    deepspeed: str = ""
    """A JSON file in DeepSpeed's own format, for what has no key here (bucket sizes, communication,
    logging). Empty: none."""
    lr: PositiveFloat = 1.0e-4
    """Learning rate of AdamW, after the warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up: `constant`, or from `lr` to `min_lr` over the
    rest of `step.count`, `linear` or by a half `cosine`."""
    min_lr: allowed.MinLr = 0.0
    """Learning rate at the end of `linear` and `cosine`, as a share of `lr`."""
    warmup_steps: NonNegativeInt = 5
    """Steps over which the learning rate rises linearly to `lr`."""
    betas: tuple[allowed.Beta, allowed.Beta] = (0.9, 0.95)
    """Decay rates of AdamW's running means of the gradient and of its square."""
    eps: PositiveFloat = 1.0e-8
    """Epsilon of AdamW, added to the root of the running mean of the gradient's square."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of AdamW, on every parameter but those of `no_decay`."""
    no_decay: tuple[NonEmpty, ...] = ("bias", "norm")
    """Parts of names: a parameter whose name holds one of them is not decayed."""
    clip_norm: NonNegativeFloat = 1.0
    """Gradient norm above which the gradient is scaled down to it; 0: never."""
    tokens_per_micro_batch: PositiveInt = 4096
    """Tokens in one forward and backward; a group's prompt counts once. Lowered by itself when
    memory runs out: for the step, at ZeRO 3 for the rest of the run."""
    overlap: Literal["off", "group", "token"] = "group"
    """When the learner works. `group`: forward and backward of taken groups while others still
    generate; `token`: also old and reference logprobs of what still runs, chunk by chunk, where a
    loss wants them; `off`: learn when the step's generation has ended."""
    kv_tokens: PositiveInt = 65536
    """Tokens cached at most for each model, with `overlap: token`; what does not fit is computed
    when its group comes."""
    updates: PositiveInt = 1
    """Optimizer steps per batch: its groups are split into so many mini-batches. Above 1 they are
    run when the step closes; the weights are published once, after the last."""
    epochs: PositiveInt = 1
    """Passes over the batch; later ones shuffle the groups."""
    old_logprobs: Literal["auto", "always"] = "auto"
    """Logprobs under the weights that the batch began with: `auto` takes them from the forward pass
    that is trained on, or, with several updates, from one of their own when a group arrives;
    `always`: from one of their own. Stale tokens have theirs from before their version ended."""
    close_s: NonNegativeFloat = 5.0
    """Seconds that a step may wait, before its update, for logprobs of tokens that later steps may
    train on (`max_staleness`); a token without one uses the engine's. 0: none are asked for."""
    reference: str = ""
    """Model that a loss may hold the policy near: `start` (the run's `model`), `average` (a moving
    average of the trained weights; `zero` 0 to 2, one more copy in float32), or a directory or a
    name on the hub, with the same vocabulary. Empty: none."""
    reference_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.889
    """Weight of older weights in `reference: average`, for each optimizer step since."""
    aggregate: Literal["auto", "token", "sequence", "group", "constant"] = "auto"
    """Mean that the loss is: over all `token`s of the step; over a `sequence`'s tokens, then over
    sequences; over a `group`'s tokens, then over groups; or a sum over the number of sequences and
    the `constant` `sampling.max_tokens` (Dr. GRPO). `auto`: as the loss was published."""
    entropy_bonus: NonNegativeFloat = 0.0
    """Coefficient of the policy's entropy at each token, subtracted from the loss. Its gradient
    keeps the probabilities of the whole vocabulary in memory. 0: off."""
    importance: Literal["auto", "off", "truncate", "mask", "sequence", "geometric"] = "auto"
    """Weights of tokens in the loss, w, learner over engine probability: `truncate` to at most
    `importance_cap`; `mask`: leave out tokens with w outside [1 / cap, cap]; `sequence`: product of
    a response's w, or `geometric`: their geometric mean, for all its tokens, at most the cap;
    `off`: w is 1; `auto`: `truncate` with `max_staleness` above 0, else `off`."""
    importance_cap: AtLeastOne = 2.0
    """Largest weight of `importance`."""
    reject_below: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Leave out responses with any w (as of `importance`) below this: engine and learner disagree
    about them (ROLL: 1e-4). They count in the mean. 0: none."""
    reject_band: Annotated[float, zero_or(1)] = 0.0
    """Leave out responses whose geometric mean of w is outside [1 / band, band] (ROLL: 10). They
    count in the mean. 0: none."""
    reject_drift: NonNegativeFloat = 0.0
    """Leave out responses of negative advantage whose logprob has fallen since they were sampled,
    by more than this a token on average, nats (DeepSeek-V3.2). They count in the mean. 0: none."""
    turn_share: PositiveShare = 1.0
    """Share of a response's turns that is trained on, those with the highest mean entropy
    (DART-GUI: 0.8); at least one. The others count in the mean. 1: all of them."""
    policy_shaping: NonNegativeFloat = 0.0
    """Gamma of LUFFY's policy shaping (there 0.1): tokens that no engine sampled (`data.solution`)
    have the objective p / (p + gamma) times the advantage, unclipped. 0: their weight is 1."""
    max_staleness: NonNegativeInt = 0
    """Weight versions that a token may be older than the weights it updates. 0: on-policy. Above 0
    the next steps' prompts go out before the update, and the loss corrects for it: it clips the
    ratio of new over old probability, and `importance` weighs tokens."""
    stale: Literal["wait", "drop"] = "wait"
    """Action on what would become older: `wait` for it before the step closes, or `drop` it (a bias
    against long responses; their lengths are in the group records)."""
    entropy: bool = True
    """Report the policy's mean entropy; costs a look at every computed logit."""
    threads: NonNegativeInt = 1
    """CPU threads of each rank, at most one for each core that the engine leaves; 0: leave it to
    torch."""
    pace: str | LearnerPace = ""
    """Emulated pace: what a token takes at least on each rank, as on the hardware named (`h20-7b`)
    or by its options. Everything is computed for real; then the rank waits. Empty: none."""

    @property
    def reference_folder(self) -> str:
        """Directory of the reference model, "" if it has none of its own."""
        return "" if self.reference in ("start", "average") else self.reference


class EngineConfig(Section, frozen=True, kw_only=True):
    kind: Literal["vllm", "transformers", "simulated"] = "vllm"
    """Engine library: `vllm`; `transformers` (its continuous batching: starts in seconds, needs no
    vLLM, slower); or `simulated` (lengths from a distribution; for tests of everything else)."""
    count: PositiveInt = 1
    """Engine processes."""
    slots: PositiveInt = 64
    """Sequences that run at once on one engine."""
    knee: NonNegativeInt = 0
    """Running sequences up to which an engine gets extra candidates (a budget's `top_up`); 0: up to
    where more of them hardly sample more a second, by a profile measured at its start."""
    chunk_tokens: PositiveInt = 16
    """New tokens of a trajectory that are sent in one chunk."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Number type of weights and computation in the engine: float32, bfloat16, auto."""
    cpu_cores: allowed.CpuCores = "auto"
    """Cores for the engine's threads, on a CPU ("0", "0-3"); `auto`: the first core for the engine
    when there are two or more, so that the learner keeps the others."""
    cpu_kv_gib: PositiveInt = 1
    """Memory of the key/value cache, GiB; on a CPU only."""
    gpu_memory: PositiveShare = 0.5
    """Share of a GPU's memory that one engine may take, weights included; on a GPU only."""
    tensor_parallel: PositiveInt = 1
    """GPUs of one engine."""
    vllm: dict[str, Any] = {}  # noqa: RUF012  copied by msgspec
    """Arguments of vLLM's `AsyncEngineArgs`, by name, for what has no key here."""
    transformers: dict[str, Any] = {}  # noqa: RUF012  copied by msgspec
    """Arguments of transformers' `ContinuousBatchingConfig`, by name, and `attn_implementation`
    (`sdpa`, `flash_attention_2`, ...; without it darts' own, which needs no kernel)."""
    pace: str | EnginePace = ""
    """Emulated pace: what a decode step takes at least, as on the hardware named (a GPU and a
    model, `h20-7b`), by a file of `python -m launch.bench.engine_profile`, or by its options.
    Tokens are sampled for real; then the engine waits. Evaluations are not paced. Empty: none."""
    restarts: NonNegativeInt = 5
    """Restarts of an engine that died, each after a longer pause, before the run stops. The count
    begins anew after ten minutes of work."""


class CheckpointConfig(Section, frozen=True, kw_only=True):
    every: NonNegativeInt = 20
    """Steps between checkpoints; also after the last step and at Ctrl-C. 0: never."""
    keep: Annotated[int, Meta(ge=2)] = 3
    """Newest checkpoints kept, at least 2."""


class AuditConfig(Section, frozen=True, kw_only=True):
    every: NonNegativeInt = 0
    """Steps between audits of selection bias: the audited step samples every candidate to the end,
    to see what selection changes in reward, length and advantage, and so takes longer. 0: never."""
    alarm: NonNegativeFloat = 0.5
    """Warn in an audited step when selection changes the advantage of a member trained on by more
    than this on average, up or down, from its advantage among all candidates. 0: never."""


class Config(Section, frozen=True, kw_only=True):
    model: str
    """Any Hugging Face causal LM with its tokenizer: a directory, or a name on the hub
    (`Qwen/Qwen2.5-0.5B`, `ORG/NAME@REVISION`)."""
    seed: allowed.Seed = 0
    """Random seed of prompt order, sampling and evaluation."""
    recipe: str = ""
    """Published methods whose settings lie beneath these: a recipe (`darts config recipes`) or a
    file, several with commas between. On a command line it lies over the file. Empty: none."""
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    step: StepConfig = StepConfig()
    group: GroupConfig = GroupConfig()
    prompt_order: Plugin = Plugin(name="shuffled")
    """Plug-in: which prompts come next."""
    budget: Plugin = Plugin(name="uniform")
    """Plug-in: how many candidates a prompt gets."""
    selector: Plugin = Plugin(name="dual_end")
    """Plug-in: which candidates are trained on, and when a group ends."""
    batch: Plugin = Plugin(name="fifo")
    """Plug-in: which groups a step takes, and when it closes."""
    environment: Plugin = Plugin(name="single")
    """Plug-in: what follows a turn of the model: a tool's answer, an environment, or nothing."""
    reward: Plugin = Plugin(name="exact")
    """Plug-in: what a response is worth."""
    advantage: Plugin = Plugin(name="grpo")
    """Plug-in: rewards of a group to advantages."""
    loss: Plugin = Plugin(name="dapo")
    """Plug-in: the objective on the learner."""
    workers: WorkersConfig = WorkersConfig()
    learner: LearnerConfig = LearnerConfig()
    engine: EngineConfig = EngineConfig()
    placement: PlacementConfig = PlacementConfig()
    weights: WeightsConfig = WeightsConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    audit: AuditConfig = AuditConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    nodes: NodesConfig = NodesConfig()
    metrics: MetricsConfig = MetricsConfig()
    rollouts: RolloutsConfig = RolloutsConfig()
    debug: DebugConfig = DebugConfig()

    @property
    def paced(self) -> str:
        """What is emulated of this run's times, in a few words; "" for nothing."""
        return paced_text(self.engine.pace, self.learner.pace, self.weights)
