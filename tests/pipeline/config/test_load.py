"""Configuration files: every problem at once, with its place and its cure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_origin

import msgspec
import pytest

from pipeline.config import docs
from pipeline.config.load import ConfigError, dump, load, plugin_class
from pipeline.config.schema import Config, Plugin
from pipeline.config.yaml_tree import scalar
from pipeline.plugins import registry
from pipeline.plugins.ranges import bare, rule_of
from pipeline.plugins.selectors.dual_end import DualEnd, DualEndOptions
from tests.paths import ROOT

SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a configuration beside a model that holds no more than load looks for."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "configs").mkdir()
    monkeypatch.chdir(tmp_path)

    def write(text: str, model: str = "model: model\n") -> Path:
        path = Path("configs/a.yaml")
        path.write_text(model + text)
        return path

    return write


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(path, overrides)
    return raised.value.problems


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configuration_loads_and_dumps_to_the_same(path: Path, tmp_path: Path):
    own = ["model=models/chain-sums", "data.train=chain_sums", "data.held_out=8"]
    config = load(path, own if path.name.startswith("qwen") else [])  # not shipped with them
    again = tmp_path / "again.yaml"
    again.write_text(dump(config))
    assert load(again) == config


def test_quickstart_names_every_setting_with_its_default():
    config = load(QUICKSTART)
    default = load_default(config.model)
    assert config == default
    text = QUICKSTART.read_text()
    for key in docs.documentation():
        if key.count(".") < 2:  # a section that may be absent is
            assert key.rsplit(".", 1)[-1] in text, key


def load_default(model: str) -> Config:
    config = Config(model=model)
    options: dict[str, Plugin] = {}
    for kind in registry.PACKAGES:
        name = getattr(config, kind).name
        struct = registry.options_type(registry.find_plugin(kind, name))
        options[kind] = Plugin(name=name, options=msgspec.to_builtins(struct()))
    return msgspec.structs.replace(config, **options)


def test_every_key_of_every_section_is_documented():
    documented = docs.documentation()
    builtin = msgspec.to_builtins(Config(model="m"))
    keys = {
        f"{name}.{key}"
        for name, section in builtin.items()
        if isinstance(section, dict) and name not in registry.PACKAGES
        for key in section
    } | {"model", "seed", "recipe", *registry.PACKAGES}
    assert {key for key in documented if key.count(".") < 2} == keys
    assert [key for key, text in documented.items() if not text] == []
    assert documented["step.prompts"] == "Groups trained on in one step."


@pytest.mark.parametrize("kind", registry.PACKAGES)
def test_every_option_of_the_house_is_documented(kind: str):
    for name in registry.builtin_names(kind):
        struct = registry.options_type(registry.find_plugin(kind, name))
        for option, text in docs.option_documentation(struct).items():
            assert text, f"{kind}.{name}.{option}"


def test_every_number_has_a_range_and_every_word_its_choices():
    free = {
        "model",
        "recipe",
        "learner.reference",
        "learner.deepspeed",
        "data.chat_template",
    }  # found or not
    free |= {"engine.pace.name", "learner.pace.name"}
    free |= {"data.system", "data.train.*.tag", "workers.env"}  # any text
    free |= {"eval.correct", "eval.best", "eval.sets.*.path"}
    assert set(without_a_rule()) == free


def without_a_rule() -> Iterator[str]:
    """Keys whose type allows every value. Not those that hold sections or names with values, or a
    plug-in: what is in them is checked, or free."""
    for prefix, struct in {"": Config, **docs.sections()}.items():
        for item in msgspec.structs.fields(struct):
            held = any(docs.sections_in(item.type)) or get_origin(item.type) is dict
            if not held and item.type not in (bool, Plugin) and not rule_of(item.type):
                yield f"{prefix}.{item.name}".lstrip(".")


def test_every_number_of_a_plugins_options_has_a_range():
    for kind in registry.PACKAGES:
        for name in registry.builtin_names(kind):
            struct = registry.options_type(registry.find_plugin(kind, name))
            numbers = [f for f in msgspec.structs.fields(struct) if bare(f.type) in (int, float)]
            free = [field.name for field in numbers if not rule_of(field.type)]
            assert free == (["mean"] if name == "length_variance" else []), f"{kind}.{name}"


def test_all_problems_come_in_one_go_with_line_key_rule_and_nearest_key(write):
    path = write(
        "seed: one\n"
        "learner: {kv_tokns: 3, zero: 4,\n"
        "  betas: [0.9]}\n"
        "lr: 1e-3\n"
        "data: {bad_lines: skipp}\n"
        "selector: {dual_end: {longst: 2}}\n"
        "budget: unifrom\n"
        "sampling:\n"
        "  temperature: 0\n"
        "eval: 5\n"
        "group: {size: 8, size: 9}\n"
    )
    budgets = registry.builtin_names("budget")
    assert problems(path) == [
        "configs/a.yaml:12: size: given twice, first at configs/a.yaml:12; remove one",
        "configs/a.yaml:5: lr: unknown key; verl's lr is learner.lr here",
        "configs/a.yaml:2: seed: found 'one', expected a whole number",
        (
            "configs/a.yaml:6: data.bad_lines: "
            "found 'skipp', expected one of stop, skip; did you mean skip?"
        ),
        "configs/a.yaml:10: sampling.temperature: found 0, expected above 0",
        "configs/a.yaml:3: learner.kv_tokns: unknown key; did you mean learner.kv_tokens?",
        "configs/a.yaml:3: learner.zero: found 4, expected a stage from 0 to 3",
        "configs/a.yaml:4: learner.betas: found [0.9], expected a list of two numbers",
        "configs/a.yaml:11: eval: found 5, expected the keys of a section",
        (
            "configs/a.yaml:8: budget: "
            f"no budget named 'unifrom'; did you mean uniform? (known: {', '.join(budgets)})"
        ),
        "configs/a.yaml:7: selector.dual_end.longst: unknown option; did you mean longest?",
    ]


def test_kl_without_a_reference_is_refused_by_its_key(write):
    path = write("")
    [line] = problems(path, "loss.dapo.kl=0.1")
    assert line == (
        "override loss.dapo.kl=0.1: loss.dapo.kl: found 0.1, but learner.reference is empty: "
        "set learner.reference: start, or kl: 0"
    )
    both = load(path, ["loss.dapo.kl=0.1", "learner.reference=start"])
    assert both.learner.reference == "start"


def test_reference_is_start_or_a_directory_that_exists(write, tmp_path: Path):
    path = write("")
    (tmp_path / "teacher").mkdir()
    found = load(path, ["learner.reference=teacher"]).learner.reference
    assert found == str((tmp_path / "teacher").resolve())
    [line] = problems(path, "learner.reference=nowhere")
    assert "learner.reference: found 'nowhere': neither start, average nor a directory" in line


def test_more_updates_than_groups_of_a_step_are_refused(write):
    [line] = problems(write("step: {prompts: 4}\n"), "learner.updates=5")
    assert "learner.updates: found 5, expected at most step.prompts, 4" in line


def test_overrides_reach_keys_plugins_and_options_and_later_ones_win(write):
    path = write("selector: {dual_end: {longest: 3}}\nstep: {count: 5}\n")
    config = load(path, ["step.prompts=4", "step.prompts=32", "budget.redundancy=1"])
    assert (config.step.count, config.step.prompts) == (5, 32)
    assert config.budget.options == {"redundancy": 1.0, "top_up": "none", "most": 2.0}
    assert load(path).selector.options == {"longest": 3, "long_wait": "step", "prune_at": 0.0}
    # the plug-in alone: its options at their defaults
    assert load(path, ["selector=dual_end"]).selector.options["longest"] == 1
    # an option of the plug-in in force, or of one that this chooses
    assert load(path, ["selector.long_wait=step"]).selector.options == {
        "longest": 3,
        "long_wait": "step",
        "prune_at": 0.0,
    }
    chosen = load(path, ["selector.concise_confident.depth=none", "selector.slack=2"]).selector
    assert (chosen.name, chosen.options["depth"], chosen.options["slack"]) == (
        "concise_confident",
        "none",
        2,
    )
    whole = load(path, ["selector={dual_end: {longest: 2}}", "data={bad_lines: skip}"])
    assert (whole.selector.options["longest"], whole.data.bad_lines) == (2, "skip")
    assert load(path, ["reward.exact.marker=#"]).reward.options["marker"] == "#"
    assert load(path, ["engine.cpu_cores=0"]).engine.cpu_cores == "0"


def test_an_overrides_problem_names_the_override(write):
    path = write("")
    assert problems(path, "step.prmpts=3", "selector.dual_end.longest=9", "what", "=1") == [
        "override what: expected key=value, for instance step.prompts=32",
        "override =1: expected key=value, for instance step.prompts=32",
        "override step.prmpts=3: step.prmpts: unknown key; did you mean step.prompts?",
        (
            "override selector.dual_end.longest=9: selector.dual_end: "
            "longest is 9, but group.size is 8: at most 7"
        ),
    ]
    # the default selector, spoiled by another key: the other key is named
    assert problems(path, "group.size=2", "selector.longest=5")[0].startswith("override selector")
    assert problems(path, "step.prompts.x=1") == [
        "override step.prompts.x=1: step.prompts: found {'x': 1}, expected a whole number"
    ]


def test_a_plugin_can_be_named_by_module_and_class(write):
    path = write("")
    name = "pipeline.plugins.selectors.dual_end:DualEnd"
    config = load(path, [f"selector={name}"])
    options = {"longest": 1, "long_wait": "step", "prune_at": 0.0}
    assert config.selector == Plugin(name=name, options=options)
    config = load(path, [f"selector.{name}.longest=2"])
    assert plugin_class("selector", config.selector) == (DualEnd, DualEndOptions(longest=2))
    again = Path("configs/b.yaml")
    again.write_text(dump(config))
    assert load(again) == config
    assert "no attribute 'Nope'" in problems(path, "selector=pipeline.plugins.actions:Nope")[0]


def test_words_that_yaml_1_1_would_turn_are_read_as_written(write):
    path = write("learner: {overlap: off, lr: 1e-3}\nseed: 010\n")
    config = load(path)
    assert (config.learner.overlap, config.learner.lr, config.seed) == ("off", 1e-3, 10)
    words = ["on", "yes", "12:30", "0x10", "0o17", "1_000", ".inf", "-.Inf", "~", "3.", ".5"]
    read = [scalar(word) for word in words]
    inf = float("inf")
    assert read == ["on", "yes", "12:30", 16, 15, "1_000", inf, -inf, None, 3.0, 0.5]


@pytest.mark.fault("a file that is no configuration, or a bomb", part="configuration", by="file")
def test_a_file_that_is_no_configuration_is_a_problem_not_a_crash(write, tmp_path: Path):
    """Promise: it is a problem in words, not a crash.
    Bound: while it is read.
    """
    path = write("")
    for text, claim in (
        ("model: [", "configs/a.yaml:1: not YAML"),
        ("- a\n", "found ['a'], expected lines of `key: value`"),
        ("model: !!python/object:os.system x\n", "tags are not read"),
        ("a: &a [1]\nb: {<<: *a}\n", "merge keys are not read"),
        ("a: &a {b: *a}\n", "aliases unfold to too much"),
        ("a: " + "[" * 50 + "]" * 50, "nested more than 16 deep"),
        ("a: " + "x" * 300_000, "more than 256000 characters"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("{[1]: 2}\n", "a key is a list or a mapping"),
        ("a: \x07", "not YAML"),
        ("", "model: missing"),
    ):
        path.write_text(text)
        assert claim in "\n".join(problems(path)), text[:40]
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 9):
        bomb += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n"
    path.write_text(bomb)
    assert "aliases unfold to too much" in "\n".join(problems(path))
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in problems(path)[0]
    assert "No such file" in problems(tmp_path / "none.yaml")[0]


def test_paths_are_found_from_here_or_beside_the_files_directory(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write("").resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(path).model == str((tmp_path / "model").resolve())
    [line] = problems(path, "model=nowhere")
    assert line.startswith("override model=nowhere: model: found 'nowhere': no such directory")
    assert str(tmp_path / "elsewhere" / "nowhere") in line
    (tmp_path / "elsewhere" / "empty").mkdir()
    assert "holds no config.json" in problems(path, "model=empty")[0]


def test_a_file_to_train_on_needs_no_held_out_prompts(write):
    path = write("")
    Path("t.jsonl").write_text(json.dumps({"prompt": "1", "answer": "1"}))
    assert load(path, ["data.train=t.jsonl"]).data.held_out == 256
    config = load(path, ["data.train=t.jsonl", "data.held_out=t.jsonl"])
    assert config.data.train == config.data.held_out == str(Path("t.jsonl").resolve())
    load(path, ["data.train=t.jsonl", "eval.every=0"])
    [line] = problems(path, "data.train=chain_sum", "eval.every=0")
    assert "did you mean chain_sums?" in line


def test_loading_a_configuration_loads_neither_torch_nor_vllm_nor_deepspeed():
    script = (
        "import sys; from pathlib import Path; from pipeline.config.load import load; "
        f"load(Path({str(QUICKSTART)!r})); "
        "print([m for m in ('torch', 'vllm', 'deepspeed', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "learner,expected",
    [
        ("{dtype: bfloat16}", "learner.zero: found 0, but learner.dtype is bfloat16"),
        ("{attention: flash_attention_2}", "learner.attention: found 'flash_attention_2': the"),
        ("{lora: {dropout: 0.1}}", "learner.lora.dropout: found 0.1, expected 0: with dropout"),
        ("{lora: {rank: 0}}", "learner.lora.rank: found 0, expected at least 1"),
        ("{lora: {targets: []}}", "learner.lora.targets: found [], expected names of linear"),
        ("{lora: {use_dora: true}}", "learner.lora.use_dora: unknown key"),
        ("{zero: 3, lora: {rank: 4}}", "learner.zero: found 3, but learner.lora is set"),
        ("{deepspeed: nowhere.json}", "learner.deepspeed: found 'nowhere.json': no such file"),
    ],
)  # fmt: skip
def test_what_the_learner_cannot_do_is_refused_with_reason_and_cure(
    write, learner: str, expected: str
):
    [problem] = problems(write(f"learner: {learner}\n"))
    assert expected in problem


@pytest.mark.parametrize(
    "learner,expected",
    [
        ("{max_staleness: 1}", "found true, but learner.max_staleness is above 0: new weights"),
        ("{overlap: token}", "found true, but learner.overlap is token: forwards of streamed"),
    ],
)
def test_an_ordered_run_refuses_what_no_order_can_fix(write, learner: str, expected: str):
    path = write(f"learner: {learner}\n")
    [problem] = problems(path, "debug.ordered=true")
    assert f"debug.ordered: {expected}" in problem
    assert load(path, ["debug.record=true"]).debug.record


@pytest.mark.parametrize(
    "setting",
    [
        "reward={http: {url: 'http://me:hunter2@judge:8000/x'}}",
        "reward.http.url=http://judge:8000/x?api_key=hunter2",
        "reward.http.url=http://me:pass/hunter2@judge",
        "reward.http.url=me:hunter2@judge:8000/x",
        "data.train=https://me:hunter2@host/rows.jsonl",
        "data.train=[{path: 'https://host/rows.jsonl?token=hunter2'}]",
        "eval.sets={a: 'https://hunter2@host/rows.jsonl'}",
        "eval.sets={'https://me:hunter2@host': 'x.jsonl'}",
        "data.chat_arguments={site: {deep: ['https://host/?sig=hunter2']}}",
        "engine.vllm.download_dir=https://me:hunter2@host",
        "model=https://me:hunter2@host/model",
        "nothing.https://me:hunter2@host/x=3",
    ],
)
def test_a_password_in_an_address_is_refused_whichever_setting_has_it_and_never_shown(
    write, setting: str
):
    with pytest.raises(ConfigError) as found:
        load(write(""), [setting])
    assert "hunter2" not in str(found.value)
    assert "hunter2" not in " ".join(found.value.problems)
    if "://" in setting and "nothing" not in setting:
        assert "which would be kept in config.yaml" in str(found.value)


@pytest.mark.parametrize("given", ["~no-such-user/*.jsonl", "~no-such-user/x", "a\0*", "a\0"])
def test_a_path_that_can_be_none_is_a_problem_not_a_crash(write, given: str):
    with pytest.raises(ConfigError, match=r"data\.train"):
        load(write(""), [f"data.train={given}", "data.held_out=256"])


def test_a_configuration_whose_link_leads_to_itself_is_named(tmp_path: Path):
    (tmp_path / "c.yaml").symlink_to("c.yaml")
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot be read"):
        load(tmp_path / "c.yaml")
