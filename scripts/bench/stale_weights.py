"""Measures which stale weights an engine's proof sees, and after how many versions.

    python -m scripts.bench.stale_weights [--kind vllm] [--versions 20] [--out FILE]

A learner in float32 trains the built-in model with AdamW on random responses and publishes every
step. From version 1 on each load of a real engine has one fault. Three proofs judge every version:
the largest gap of the probe alone, with the limits 1e-3 and 2 nats (darts before protocol 5); the
change of the probe; and the comparison of the tensors that the engine holds. Also prints what the
last two cost, and how far the engine's noise is from what `judge_change` expects of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engines.backends.held_tensors import compare_with_file
from engines.base import Engine
from engines.weights import FILE, WeightsError
from engines.weights_change import DOUBT, judge_change
from engines.weights_probe import WeightsProof, probe_engine, probed
from learner import lora
from learner.weights import WeightPublisher, probe_logprobs, probe_tokens, tensor_checksums
from pipeline.config.schema import EngineConfig, LoraConfig
from pipeline.stage.build import GAP_LIMIT_FLOAT32, GAP_LIMIT_ROUNDED
from pipeline.wire.messages import Manifest
from scripts.bench.program import options_parser, write_json

MODEL = Path(__file__).resolve().parents[2] / "models" / "chain-sums"
RATES = (1e-6, 1e-4)
DTYPES = ("float32", "bfloat16")
LAYER = "model.layers.1."
_BATCH = (8, 40)  # responses, tokens


class Trainer:
    """A learner in this process: real optimizer steps, published for engines of one type."""

    def __init__(self, folder: Path, dtype: str, lr: float, rank: int = 0) -> None:
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_pretrained(
            MODEL, dtype=torch.float32, trust_remote_code=False
        )
        self.model = model.eval()
        if rank:
            section = LoraConfig(rank=rank, alpha=2.0 * rank, targets=("q_proj", "down_proj"))
            lora.attach(self.model, section, MODEL)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=lr)
        self._generator = torch.Generator().manual_seed(1)
        self._dtype: torch.dtype = getattr(torch, dtype)
        vocabulary = int(self.model.config.vocab_size)
        self.probe = probe_tokens(vocabulary, {0, 1})
        self._vocabulary = vocabulary
        self._publisher = WeightPublisher(folder, self.probe, self._dtype)
        self.version = -1

    def publish(self) -> Manifest:
        """Publish the weights as the next version."""
        self.version += 1
        logprobs = probe_logprobs(self.model, self.probe, self._dtype)
        return self._publisher.publish_version(self.model, self.version, logprobs)

    def step(self) -> None:
        """Make one optimizer step of the policy gradient, with random advantages."""
        tokens_BL = torch.randint(2, self._vocabulary, _BATCH, generator=self._generator)
        advantages_B1 = torch.randn(_BATCH[0], 1, generator=self._generator)
        logprobs_BLV = self.model(tokens_BL).logits[:, :-1].log_softmax(-1)
        taken_BL = logprobs_BLV.gather(-1, tokens_BL[:, 1:, None])[..., 0]
        self._optimizer.zero_grad()
        (-(taken_BL * advantages_B1).mean()).backward()
        self._optimizer.step()


Load = Callable[[Engine, Path, Path, int], Coroutine[Any, Any, None]]
"""Loads a version with a fault: (engine, directory of version 0, new directory, version)."""


async def load(engine: Engine, first: Path, directory: Path, version: int) -> None:
    """Load without a fault."""
    del first
    await engine.load_weights(str(directory), version)


async def load_nothing(engine: Engine, first: Path, directory: Path, version: int) -> None:
    """Load nothing."""
    del engine, first, directory, version


async def load_old_file(engine: Engine, first: Path, directory: Path, version: int) -> None:
    """Load the file of version 0, which lies under the new name."""
    shutil.copyfile(first / FILE, directory / FILE)
    await engine.load_weights(str(directory), version)


async def load_without_a_layer(engine: Engine, first: Path, directory: Path, version: int) -> None:
    """Load all layers but one, which keeps version 0."""
    old, tensors = load_file(first / FILE), load_file(directory / FILE)
    mixed = {name: old[name] if name.startswith(LAYER) else tensors[name] for name in tensors}
    (directory / "mixed").mkdir()
    save_file(mixed, directory / "mixed" / FILE, metadata={"format": "pt"})
    await engine.load_weights(str(directory / "mixed"), version)


async def load_without_the_head(engine: Engine, first: Path, directory: Path, version: int) -> None:
    """Load everything, but the output layer, tied to the embedding, keeps version 0."""
    if llm := getattr(engine, "_llm", None):
        # vLLM's own reload: on a CPU it does not pack the tied head again.
        await llm.pause_generation(mode="keep", clear_cache=True)
        await llm.collective_rpc("reload_weights", kwargs={"weights_path": str(directory)})
        await llm.resume_generation()
        return
    model: Any = engine._batching._model  # noqa: SLF001  # pyright: ignore
    model.tie_weights()
    await engine.load_weights(str(directory), version)
    head = load_file(first / FILE)["model.embed_tokens.weight"].to(model.dtype)
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)


def mend(engine: Engine) -> None:
    """Undo what `load_without_the_head` did to a model of this process."""
    if batching := getattr(engine, "_batching", None):
        batching._model.tie_weights()  # noqa: SLF001


FAULTS: dict[str, Load] = {
    "nothing is loaded": load_nothing,
    "one of three layers is not loaded": load_without_a_layer,
    "the tied head is stale": load_without_the_head,
    "an old file under the new name": load_old_file,
}
UNMERGED = "an adapter is not merged"
"""A fault of the learner: the file lacks what it trained."""


@contextlib.contextmanager
def unmerged_adapters() -> Any:
    """Have the learner publish its base weights, while its probe is of the adapters."""
    merged = lora.merged_tensors

    def forget(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = merged(model, tensors)
        for name, layer in lora.adapted_layers(model):
            found[f"{name}.weight"] = layer.base_layer.weight.detach()
        return found

    lora.merged_tensors = forget
    try:
        yield
    finally:
        lora.merged_tensors = merged


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one proof said of the faulty versions."""

    refused_after: int = 0  # versions; 0: never
    proved: int = 0  # faulty versions that it called proved before
    unsure: int = 0

    def __str__(self) -> str:
        if self.proved:
            return f"passes {self.proved} as proved" + (
                f", then seen after {self.refused_after}" if self.refused_after else ""
            )
        if self.refused_after:
            return str(self.refused_after)
        return f"cannot tell ({self.unsure} versions)"


def gap_limit(dtype: str) -> float:
    """Return the limit of the largest gap for engines of a type, nats."""
    return GAP_LIMIT_FLOAT32 if dtype == "float32" else GAP_LIMIT_ROUNDED


def judged(answers: Sequence[str]) -> Verdict:
    """Sum up the answers of a proof, in order of versions."""
    seen = answers.index("refused") if "refused" in answers else len(answers)
    before = answers[:seen]
    return Verdict(
        refused_after=seen + 1 if seen < len(answers) else 0,
        proved=before.count("proved"),
        unsure=before.count("unsure"),
    )


@dataclasses.dataclass
class Judges:
    """The three proofs, each with its own memory of an engine."""

    engine: Engine
    limit: float
    change: WeightsProof
    tensors: WeightsProof

    @classmethod
    def of(cls, engine: Engine, dtype: str) -> Judges:
        """Make proofs that have seen nothing yet."""
        quiet: Callable[[str], None] = lambda line: None  # noqa: E731
        proofs = (WeightsProof(engine, quiet), WeightsProof(engine, quiet))
        return cls(engine, gap_limit(dtype), *proofs)

    async def judge(self, manifest: Manifest, directory: Path) -> dict[str, str]:
        """Return 'proved', 'unsure' or 'refused' of each proof, by name."""
        found: dict[str, str] = {}
        without = msgspec.structs.replace(manifest, tensors={})
        for name, proof, of in (
            ("change", self.change, without),
            ("tensors", self.tensors, manifest),
        ):
            try:
                loaded = await proof.prove(of, str(directory))
                refused = max(loaded.gaps.values()) > self.limit
                found[name] = "refused" if refused else "proved" if loaded.proved else "unsure"
                if name == "change":
                    found["gap"] = "refused" if refused else "proved"
            except WeightsError:
                found[name] = "refused"
        if "gap" not in found:
            logprobs = await probe_engine(self.engine, manifest)
            now = probed(manifest, logprobs)
            gaps = [abs(e - p) for e, p in zip(now.found, now.expected, strict=True) if e == e]
            found["gap"] = "refused" if max(gaps) > self.limit else "proved"
        return found


async def faulty_versions(
    engine: Engine, fault: str, dtype: str, lr: float, versions: int, folder: Path
) -> dict[str, Verdict]:
    """Load version 0 well and the following ones with a fault; return each proof's verdict."""
    trainer = Trainer(folder / "weights", dtype, lr, rank=8 if fault == UNMERGED else 0)
    judges = Judges.of(engine, dtype)
    first = folder / "first"
    first.mkdir()
    manifest = trainer.publish()
    shutil.copyfile(Path(manifest.directory) / FILE, first / FILE)
    await engine.load_weights(str(first), 0)
    said = [await judges.judge(manifest, first)]
    answers: dict[str, list[str]] = {"gap": [], "change": [], "tensors": []}
    refused = "refused" in said[0].values()
    assert not refused, f"version 0 is refused: {said}"
    for version in range(1, versions + 1):
        trainer.step()
        if fault == UNMERGED:
            with unmerged_adapters():
                try:
                    trainer.publish()
                    answers["tensors"].append("proved")
                except lora.LoraError:
                    answers["tensors"].append("refused")
                check, lora.check_merged = lora.check_merged, lambda *_: None  # type: ignore
                trainer.version = version - 1
                manifest = trainer.publish()
                lora.check_merged = check
            await engine.load_weights(manifest.directory, version)
            said = [await judges.judge(manifest, Path(manifest.directory))]
            del said[0]["tensors"]  # the learner's check stands for it
        else:
            manifest = trainer.publish()
            directory = Path(manifest.directory)
            await FAULTS[fault](engine, first, directory, version)
            said = [await judges.judge(manifest, directory)]
        for name, answer in said[0].items():
            answers[name].append(answer)
        if all("refused" in given for given in answers.values()):
            break
    mend(engine)
    return {name: judged(given) for name, given in answers.items()}


class Sound(msgspec.Struct, frozen=True, kw_only=True):
    """What proofs say of versions without a fault, and what they cost."""

    versions: int
    proved_by_change: int
    refused: int
    proved_by_tensors: int
    tensors: str  # checked and published
    noise: float  # the largest |r| / (noise * sqrt(n)); `judge_change` refuses above 8
    probe_s: float
    check_s: float


async def sound_versions(
    engine: Engine, dtype: str, lr: float, versions: int, folder: Path
) -> Sound:
    """Load every version well."""
    trainer = Trainer(folder / "weights", dtype, lr)
    judges = Judges.of(engine, dtype)
    answers: list[dict[str, str]] = []
    before, worst, check_s, probe_s, tensors = None, 0.0, 0.0, 0.0, ""
    for version in range(versions + 1):
        if version:
            trainer.step()
        manifest = trainer.publish()
        await engine.load_weights(manifest.directory, version)
        answers.append(await judges.judge(manifest, Path(manifest.directory)))
        started = time.monotonic()
        held = await engine.check_tensors(manifest.directory, manifest.tensors)
        check_s += time.monotonic() - started
        tensors = f"{len(held.equal)} of {len(manifest.tensors)}"
        started = time.monotonic()
        now = probed(manifest, await probe_engine(engine, manifest))
        probe_s += time.monotonic() - started
        change = judge_change(before, now)
        if before is not None:
            n = sum(one == one for one in now.found)
            worst = max(worst, DOUBT * change.missing / (change.doubt * n**0.5))
        before = now
    said = answers[1:]
    return Sound(
        versions=versions,
        proved_by_change=sum(one["change"] == "proved" for one in said),
        refused=sum("refused" in one.values() for one in said),
        proved_by_tensors=sum(one["tensors"] == "proved" for one in said),
        tensors=tensors,
        noise=worst,
        probe_s=probe_s / (versions + 1),
        check_s=check_s / (versions + 1),
    )


@contextlib.asynccontextmanager
async def started_engine(kind: str, dtype: str) -> AsyncIterator[Engine]:
    """Start a real engine of the built-in model."""
    section = EngineConfig(kind=kind, dtype=dtype, slots=16, chunk_tokens=8)  # pyright: ignore
    if kind == "vllm":
        from engines.backends.vllm import VllmEngine as Made
    else:
        from engines.backends.transformers import TransformersEngine as Made
    engine = Made(str(MODEL), section)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def comparison_rate(megabytes: int = 512) -> float:
    """Return GB of bfloat16 tensors in the page cache that are compared in a second."""
    tensors = {f"layer.{i}": torch.randn(4096, 2048).bfloat16() for i in range(megabytes // 16)}
    with tempfile.TemporaryDirectory(prefix="darts-stale-") as folder:
        save_file(tensors, Path(folder) / FILE)
        checksums = tensor_checksums(tensors)
        started = time.monotonic()
        found = compare_with_file(
            Path(folder) / FILE, checksums, lambda name, published: [(tensors[name], published)]
        )
        took_s = time.monotonic() - started
    assert len(found.equal) == len(tensors)
    return sum(one.nbytes for one in tensors.values()) / took_s / 1e9


async def measure(kind: str, versions: int) -> dict[str, Any]:
    """Measure all faults, types and learning rates with one kind of engine; prints as it goes."""
    table: dict[str, dict[str, dict[str, Verdict]]] = {}
    sound: dict[str, Sound] = {}
    for dtype in DTYPES:
        async with started_engine(kind, dtype) as engine:
            for lr in RATES:
                column = f"{dtype}, {lr:.0e}"
                for fault in (*FAULTS, UNMERGED):
                    with tempfile.TemporaryDirectory(prefix="darts-stale-") as folder:
                        found = await faulty_versions(
                            engine, fault, dtype, lr, versions, Path(folder)
                        )
                    table.setdefault(fault, {})[column] = found
                    print(f"{column}: {fault}: {found}", file=sys.stderr, flush=True)
            for lr in (*RATES, 1e-3):
                with tempfile.TemporaryDirectory(prefix="darts-stale-") as folder:
                    found = await sound_versions(engine, dtype, lr, versions, Path(folder))
                sound[f"{dtype}, {lr:.0e}"] = found
                print(f"{dtype}, {lr:.0e}: {found}", file=sys.stderr, flush=True)
    return {"faults": table, "sound": sound}


def faults_table(table: dict[str, dict[str, dict[str, Verdict]]]) -> str:
    """Format the verdicts: a row for each fault and proof, a column for each type and rate."""
    columns = list(next(iter(table.values())))
    lines = [f"| fault | proof | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for fault, row in table.items():
        for proof, named in (("gap", "before"), ("change", "probe"), ("tensors", "tensors")):
            cells = " | ".join(str(row[column][proof]) for column in columns)
            lines.append(f"| {fault} | {named} | {cells} |")
    return "\n".join(lines)


def sound_table(sound: dict[str, Sound]) -> str:
    """Format what the proofs say of versions without a fault."""
    heads = ("versions without a fault", "refused", "proved by tensors", "by the probe", "noise")
    heads = (*heads, "probe, ms", "tensors, ms")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [
        f"| {name} | {s.refused} of {s.versions} | {s.proved_by_tensors} ({s.tensors}) "
        f"| {s.proved_by_change} | {s.noise:.2f} | {1e3 * s.probe_s:.0f} | {1e3 * s.check_s:.1f} |"
        for name, s in sound.items()
    ]
    return "\n".join(lines)


def main() -> int:
    parser = options_parser(__doc__)
    parser.add_argument("--kind", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument("--versions", type=int, default=20, help="faulty versions at most")
    options = parser.parse_args()
    found = asyncio.run(measure(options.kind, options.versions))
    found["comparison_gb_per_s"] = rate = comparison_rate()
    print(faults_table(found["faults"]), "", sound_table(found["sound"]), "", sep="\n")
    print(f"comparison of tensors on the CPU: {rate:.1f} GB/s")
    write_json(options.out, msgspec.to_builtins(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
