"""Bad inputs: each error says where, what was found, what is expected, and what to do.

One row an input, as a user would give it to `darts train CONFIG --dry-run`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from launch.cli import app
from tests.paths import MODEL

DATA = "data: {train: a.jsonl, held_out: a.jsonl%s}\n"
GOOD = {"prompt": "1+1=", "answer": "2"}
MEND = "correct them, or leave them out with data.bad_lines: skip"
KEYS = "docs/configuration.md lists every key and its values"


@dataclass(frozen=True)
class Bad:
    """An input, and what its error has to say."""

    name: str
    place: str
    found: str
    rule: str
    cure: str
    config: str = ""  # lines below `model: model`
    files: dict[str, Any] = field(default_factory=dict[str, Any])  # bytes, text, or rows
    make: Callable[[], None] | None = None  # changes the current directory
    overrides: tuple[str, ...] = ()


def rows(*given: Any) -> dict[str, Any]:
    return {"a.jsonl": list(given)}


def asked(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return rows({"prompt": list(messages), "answer": "2", **more})


def edited(name: str, **values: Any) -> Callable[[], None]:
    """A file of the model with other values."""

    def make() -> None:
        path = Path("model") / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return make


def removed(name: str) -> Callable[[], None]:
    return lambda: (Path("model") / name).unlink()


def without_an_end() -> None:
    edited("config.json", eos_token_id=None)()
    (Path("model") / "generation_config.json").unlink()


def saved_by_other_names() -> None:
    data = datasets.Dataset.from_list([GOOD])
    datasets.DatasetDict({"easy": data, "hard": data}).save_to_disk("saved")


USER = {"role": "user", "content": "1+1="}
TEMPLATE = {"model/chat_template.jinja": "{{ messages[0].content }}"}
STRICT = {"model/chat_template.jinja": "\n{{ raise_exception('only one turn') }}"}
BROKEN = {"model/chat_template.jinja": "{% for m in messages %}"}
SUMS = {"model/chat_template.jinja": "{{ 1 + messages[0].content }}"}
TWICE = {"model/chat_template.jinja": "${{ messages[0].content }}"}
LONG = {"prompt": "1" * 500 + "=", "answer": "2"}
FILES = [
    Bad("a file that is not there", "c.yaml:2: data.train", "found 'no.jsonl'",
        "neither a built-in task (chain_sums, deep_sums, long_sums, loong, mixed_sums) nor a file",
        "mend the path", "data: {train: no.jsonl, held_out: 1}\n"),
    Bad("a task misspelt", "c.yaml:2: data.train", "found 'chain_sum'", "a built-in task",
        "did you mean chain_sums?", "data: {train: chain_sum}\n"),
    Bad("a folder without data", "empty", "found no file", "expected .jsonl, .json, .parquet in it",
        "name another", "data: {train: empty, held_out: empty}\n", {"empty/README": "x"}),
    Bad("a packed file", "a.jsonl", "found compressed with gzip", "expected JSONL or parquet",
        "unpack it", DATA % "", {"a.jsonl": b"\x1f\x8b\x08\x00"}),
    Bad("a pointer of git-lfs", "a.jsonl", "found a pointer of git-lfs", "JSONL or parquet",
        "git lfs pull", DATA % "", {"a.jsonl": "version https://git-lfs.github.com/spec/v1\n"}),
    Bad("a table", "a.csv", "found CSV", "expected JSONL or parquet", "to_json(..., orient=",
        "data: {train: a.csv, held_out: a.csv}\n", {"a.csv": "prompt,answer\n1+1=,2\n"}),
    Bad("a NaN that Python wrote", "a.jsonl:1", "found NaN", "which JSON does not have",
        "write null", DATA % "", {"a.jsonl": '{"prompt": "1+1=", "answer": NaN}\n'}),
    Bad("messages of ShareGPT", "a.jsonl:1", "has from and value at [0]", "expected role and",
        MEND, DATA % "", asked({"from": "human", "value": "1+1="})),
    Bad("an Arrow file", "a.jsonl", "found an Arrow file", "expected JSONL or parquet",
        "name the folder that datasets' save_to_disk wrote", DATA % "", {"a.jsonl": b"ARROW1\0\0"}),
    Bad("half a parquet file", "a.jsonl", "cannot be read as parquet", "expected a complete file",
        "write it again", DATA % "", {"a.jsonl": b"PAR1" + b"\0" * 40}),
    Bad("a table of text", "a.jsonl:1", "not JSON", "expected one object a line", MEND, DATA % "",
        {"a.jsonl": "prompt,answer\n1+1=,2\n"}),
    Bad("one JSON list of everything", "a.jsonl:1", "found one list of everything",
        "expected one object a line", "jq -c '.[]' a.jsonl", DATA % "",
        {"a.jsonl": "[\n{}\n]"}),
    Bad("a row that is no object", "a.jsonl:2", "found a list", "expected an object", MEND,
        DATA % "", rows(GOOD, [1])),
    Bad("a file of blank lines", "a.jsonl", "no usable prompt", "expected at least one",
        "name another", DATA % "", {"a.jsonl": "\n\n"}),
    Bad("splits of other names", "saved", "has the splits easy, hard", "no 'train'",
        "name one, for example", "data: {train: saved, held_out: saved}\n",
        make=saved_by_other_names),
    Bad("a saved folder that lost its index", "saved/dataset_dict.json",
        "not written by save_to_disk", "by save_to_disk", "save it again",
        "data: {train: saved, held_out: saved}\n", {"saved/dataset_dict.json": "{"}),
    Bad("a saved folder that lost its data", "saved", "datasets cannot read it",
        "FileNotFoundError", "save it again", "data: {train: saved, held_out: saved}\n",
        {"saved/state.json": "{}"}),
]  # fmt: skip
ENCODINGS = [
    Bad("data in UTF-16", "a.jsonl", "found text in UTF-16", "expected JSONL or parquet",
        "save it as UTF-8", DATA % "", {"a.jsonl": json.dumps(GOOD).encode("utf-16")}),
    Bad("data in Latin-1", "a.jsonl:1", "not JSON", "expected one object a line", MEND, DATA % "",
        {"a.jsonl": '{"prompt": "1+1=", "answer": "zwölf"}'.encode("latin-1")}),
    Bad("a configuration in Latin-1", "c.yaml", "cannot be read: 'utf-8' codec",
        "expected a YAML file in UTF-8", "save it as one", files={"c.yaml": b"model: m\xf6del\n"}),
    Bad("a control character in a configuration", "c.yaml:1", "not YAML", "control characters",
        KEYS, files={"c.yaml": "model: \x07\n"}),
    Bad("a chat template in Latin-1", "model/chat_template.jinja", "cannot be read",
        "expected a chat template in UTF-8", "save it so", DATA % "",
        {"model/chat_template.jinja": "ö".encode("latin-1"), **asked(USER)}),
    Bad("letters that the tokenizer lacks", "a.jsonl:1: prompt", "cannot be written",
        "in the tokenizer's alphabet", MEND, DATA % "", rows({"prompt": "one?", "answer": "2"})),
]  # fmt: skip
FIELDS = [
    Bad("no prompt", "a.jsonl:1", "no field 'prompt'", "(data.prompt); fields: q, answer",
        "name one of these", DATA % "", rows({"q": "1+1=", "answer": "2"})),
    Bad("no answer in a later row", "a.jsonl:2", "no field 'answer'", "(data.answer)",
        "name one of these", DATA % "", rows(GOOD, {"prompt": "1="})),
    Bad("no answer that exact could compare with", "a.jsonl",
        "no row has any of the fields", "the reward exact compares with an answer",
        "name its field with data.answer", DATA % "",
        rows({"prompt": "1+1=", "gold": "2"})),
    Bad("no answer for a part of a sum", "a.jsonl", "no row has any of the fields",
        "the reward sum compares with an answer", "name its field with data.answer",
        DATA % "" + "reward: {sum: {of: [exact]}}\n", rows({"prompt": "1+1=", "gold": "2"})),
    Bad("an answer one level too high", "a.jsonl:1", "reward_model is an object",
        "expected text or a number", MEND, DATA % ", answer: reward_model",
        rows({"prompt": "1+1=", "reward_model": {"ground_truth": "2"}})),
    Bad("an answer that is null", "a.jsonl:1", "answer is null", "expected text or a number", MEND,
        DATA % ", answer: answer", rows({"prompt": "1+1=", "answer": None})),
    Bad("a prompt that is a number", "a.jsonl:1", "prompt is a number",
        "expected text or a list of messages", MEND, DATA % "", rows({**GOOD, "prompt": 3})),
    Bad("an empty prompt", "a.jsonl:1", "prompt is empty", "expected text", MEND, DATA % "",
        rows({**GOOD, "prompt": ""})),
    Bad("a prompt longer than the model", "a.jsonl:1", "prompt of 501 tokens",
        "the model takes 512", "leave long prompts out with data.long_prompts: drop", DATA % "",
        rows(LONG)),
    Bad("a prompt longer than allowed", "a.jsonl:1", "prompt of 501 tokens",
        "data.max_prompt_tokens is 64", "data.long_prompts: drop", DATA % ", max_prompt_tokens: 64",
        rows(LONG)),
    Bad("messages that would be cut", "a.jsonl:1", "prompt of 501 tokens", "is longer than 64",
        "set data.long_prompts: drop", DATA % ", max_prompt_tokens: 64, long_prompts: cut",
        {**TEMPLATE, **asked({**USER, "content": LONG["prompt"]})}),
    Bad("a role misspelt", "a.jsonl:1", "has the role 'usr' at [0]",
        "expected one of system, developer, user, assistant, tool", MEND, DATA % "",
        {**TEMPLATE, **asked({**USER, "role": "usr"})}),
    Bad("no messages", "a.jsonl:1", "is an empty list", "expected messages", MEND, DATA % "",
        asked()),
    Bad("an image", "a.jsonl:1", "has image in the content at [0]", "expected text alone",
        "leave the prompt out", DATA % "",
        {**TEMPLATE, **asked({**USER, "content": [{"type": "image"}]})}),
    Bad("messages where there is to be text", "a.jsonl:1", "is a list, and data.chat is never",
        "expected text", "set data.chat: auto", DATA % ", chat: never", asked(USER)),
    Bad("a system message for text", "a.jsonl:1", "is text", "so data.system cannot be added",
        "set data.chat: always", DATA % ", system: be brief", rows(GOOD)),
]  # fmt: skip
TEMPLATES = [
    Bad("no chat template", "model: no chat template",
        "no chat template in chat_template.jinja, tokenizer_config.json or chat_template.json",
        "a prompt needs one", "name a file with data.chat_template", DATA % "",
        asked(USER)),
    Bad("a template that is none", "model/chat_template.jinja:1", "not a chat template",
        "expected Jinja", "correct it", DATA % "", {**BROKEN, **asked(USER)}),
    Bad("a template that refuses", "a.jsonl:1", "is refused by", "line 2: only one turn",
        "name another template with data.chat_template", DATA % "", {**STRICT, **asked(USER)}),
    Bad("a template that fails", "a.jsonl:1", "is refused by", "line 1: TypeError",
        "correct the messages", DATA % "", {**SUMS, **asked(USER)}),
    Bad("the first token twice", "a.jsonl:1", "begins with the beginning-of-sequence token twice",
        "the chat template adds it", "remove it from the text", DATA % "",
        {**TWICE, **asked({**USER, "content": "$1+1="})}, edited("config.json", bos_token_id=1)),
    Bad("a template file that is not there", "c.yaml:2: data.chat_template", "found 'no.jinja'",
        "no such file", "mend the path", "data: {chat_template: no.jinja}\n"),
    Bad("an argument that darts gives", "c.yaml:2: data.chat_arguments", "found messages",
        "which darts sets itself", "leave it out", "data: {chat_arguments: {messages: []}}\n"),
    Bad("a system message without templates", "c.yaml:2: data.system", "found 'be brief'",
        "no template is used", "set data.chat: always", "data: {chat: never, system: be brief}\n"),
]  # fmt: skip
TOKENIZERS = [
    Bad("no model", "override model=nowhere: model", "found 'nowhere'", "no such directory",
        "mend the path", overrides=("model=nowhere",)),
    Bad("no config.json", "c.yaml:1: model", "holds no config.json", "not a Hugging Face directory",
        "name one of save_pretrained", make=removed("config.json")),
    Bad("no tokenizer.json", "model/tokenizer.json", "no such file", "prompts need it",
        "save_pretrained(...)", make=removed("tokenizer.json")),
    Bad("half a tokenizer", "model/tokenizer.json", "not a tokenizer",
        "expected a file of the package tokenizers", "save it again",
        files={"model/tokenizer.json": "{"}),
    Bad("half a config.json", "model/config.json", "not JSON", "expected an object",
        "save it again", files={"model/config.json": "{"}),
    Bad("a tokenizer of another model", "model: the tokenizer", "ids up to 23, the model has 20",
        "config.json: vocab_size", "take both from the same model",
        make=edited("config.json", vocab_size=20)),
    Bad("no end of sequence", "model: no end-of-sequence token", "has eos_token_id",
        "no response could end", "name it in generation_config.json",
        make=without_an_end),
    Bad("an end that is no token", "model: eos_token_id 999", "is not a token of the tokenizer",
        "24 ids", "correct it in config.json",
        make=edited("config.json", eos_token_id=999)),
    Bad("code beside the model", "model/config.json", "auto_map names code",
        "never runs such code", "remove auto_map from the file",
        make=edited("config.json", auto_map={"AutoModel": "m.Model"})),
]  # fmt: skip
REWARDS = [
    Bad("a reward misspelt", "c.yaml:2: reward", "no reward named 'exct'", "known:",
        "did you mean exact?", "reward: exct\n"),
    Bad("an option that it has not", "c.yaml:2: reward.exact.markr", "unknown option",
        "reward.exact.markr", "did you mean marker?", "reward: {exact: {markr: x}}\n"),
    Bad("a function without a name", "c.yaml:2: reward.python", "needs the option", "function",
        KEYS, "reward: {python: {}}\n"),
    Bad("a module that is not there", "c.yaml:2: reward.python", "function is 'nowhere:f'",
        "ModuleNotFoundError", KEYS, "reward: {python: {function: 'nowhere:f'}}\n"),
    Bad("a function with other parameters", "c.yaml:2: reward.python", "takes (a, b)",
        "expected (prompts, completions, **columns)", KEYS,
        "reward: {python: {function: 'own.py:f'}}\n", {"own.py": "def f(a, b): return 0.0\n"}),
    Bad("a gold answer without its mark", "a.jsonl:1: answer", "found '2'", "expected '####'",
        "correct them, leave them out", DATA % "" + "reward: {math: {gold_after: '####'}}\n",
        rows(GOOD)),
    Bad("a sum of what is not there", "c.yaml:2: reward.sum", "of [1]: no reward named 'maths'",
        "known:", "did you mean math?", "reward: {sum: {of: [exact, maths]}}\n"),
    Bad("a part with batches of its own", "c.yaml:2: reward.sum", "of [0]: exact: batch",
        "the sum has its own", "set reward.sum.batch",
        "reward: {sum: {of: [{exact: {batch: 3}}]}}\n"),
    Bad("a server that is not there", "http://127.0.0.1:9/score", "Connection refused",
        "after 1 tries", "start the server, or mend reward.http.url",
        DATA % "" + "reward: {http: {url: 'http://127.0.0.1:9/score', tries: 1}}\n", rows(GOOD)),
    Bad("a server that may take too long", "c.yaml:2: reward.http", "workers.limit_s is 10",
        "3 tries of 9 s", "raise workers.limit_s",
        "reward: {http: {url: 'http://a/b', timeout_s: 9}}\n"),
    Bad("more drawn than sampled", "c.yaml:2: eval.k", "found 8", "at most eval.samples, 4",
        "take a smaller k, or more samples", "eval: {k: [8]}\n"),
    Bad("a best figure that nothing has", "c.yaml:2: eval.best", "found 'acuracy'",
        "expected one of reward, accuracy, pass@4", "did you mean accuracy?",
        "eval: {best: acuracy}\n"),
    Bad("words that the model has not", "environment.calculator.failure_text", "found 'sorry'",
        "cannot be written in the tokenizer's alphabet", "take characters that",
        "environment: {calculator: {failure_text: sorry}}\n"),
    Bad("a set that is not there", "c.yaml:2: eval.sets.aime", "found 'aime.jsonl'",
        "nor a file, a folder or a pattern", "built-in task",
        "eval: {sets: {aime: aime.jsonl}}\n"),
]  # fmt: skip
KEYED = [
    Bad("a key misspelt", "c.yaml:2: step.prmpts", "step.prmpts", "unknown key",
        "did you mean step.prompts?", "step: {prmpts: 3}\n"),
    Bad("a key given twice", "c.yaml:3: seed", "given twice", "first at c.yaml:2", "remove one",
        "seed: 1\nseed: 2\n"),
    Bad("a word for a number", "c.yaml:2: step.prompts", "found 'many'", "expected a whole number",
        KEYS, "step: {prompts: many}\n"),
    Bad("a number out of range", "c.yaml:2: learner.zero", "found 4", "a stage from 0 to 3", KEYS,
        "learner: {zero: 4}\n"),
    Bad("two GPUs for an engine of one", "c.yaml:2: engine.tensor_parallel", "found 2",
        "engine.kind is transformers", "set it to 1, or engine.kind: vllm",
        "engine: {kind: transformers, tensor_parallel: 2}\n"),
    Bad("a choice misspelt", "c.yaml:2: data.long_prompts", "found 'dorp'",
        "expected one of stop, drop, cut", "did you mean drop?", "data: {long_prompts: dorp}\n"),
    Bad("a source without a path", "c.yaml:3: data.train.0", "needs the key path", "data.train.0",
        KEYS, "data:\n  train: [{weight: 2}]\n"),
    Bad("a source of names alone", "c.yaml:2: data.train.0", "found 'a.jsonl'",
        "expected the keys of a section", KEYS, "data: {train: [a.jsonl], held_out: 0}\n"),
    Bad("no sources", "c.yaml:2: data.train", "found an empty list", "expected a source at least",
        "name a file", "data: {train: [], held_out: 0}\neval: {every: 0}\n"),
    Bad("a weight of nothing", "c.yaml:2: data.train.0.weight", "found 0", "expected above 0",
        KEYS, "data: {train: [{path: chain_sums, weight: 0}], held_out: 0}\neval: {every: 0}\n"),
    Bad("the best step by held-out prompts that are none", "eval.best is 'accuracy'",
        "data.held_out is 3", "nothing is held out", "name prompts with data.held_out=FILE",
        "data: {train: a.jsonl, held_out: 3}\neval: {best: accuracy}\n", rows(GOOD)),
    Bad("prompt and answer in one field", "c.yaml:2: data.answer", "found 'prompt'",
        "the same field as data.prompt", "name another", "data: {answer: prompt}\n"),
    Bad("an override that is none", "override what", "override what", "expected key=value",
        "for instance step.prompts=32", overrides=("what",)),
]  # fmt: skip
BAD = [*FILES, *ENCODINGS, *FIELDS, *TEMPLATES, *TOKENIZERS, *REWARDS, *KEYED]


def lay_out(bad: Bad) -> None:
    """The input, in the current directory, beside a model and a configuration that are good."""
    Path("model").mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(MODEL / name, "model")
    Path("c.yaml").write_text(f"model: model\n{bad.config}")
    for name, content in bad.files.items():
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    if bad.make is not None:
        bad.make()


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_error_names_place_finding_rule_and_cure(
    bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    lay_out(bad)
    result = CliRunner().invoke(app, ["train", "c.yaml", *bad.overrides, "--dry-run"])
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert len(BAD) == len({row.name for row in BAD}) >= 40
    for part in (bad.place, bad.found, bad.rule, bad.cure):
        assert part in result.stderr, result.stderr
