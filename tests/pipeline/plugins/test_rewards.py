"""The built-in rewards and the users' own, in this process: what each makes of a response."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launch.preflight import rewards
from pipeline.config.load import ConfigError, load
from pipeline.config.schema import Config, Plugin, WorkersConfig
from pipeline.data.dataset import Dataset, Item
from pipeline.plugins import registry
from pipeline.plugins.actions import Score
from pipeline.plugins.rewards._results import Outcome, outcomes
from pipeline.plugins.rewards.http import HttpOptions
from pipeline.plugins.rewards.python import Python, PythonOptions
from pipeline.plugins.rewards.sum import SumOptions
from pipeline.plugins.testing import option_problems, sample_of
from pipeline.plugins.views import Sampled
from tests.paths import ROOT


def reward(name: str, **options: Any) -> Any:
    cls = registry.find_plugin("reward", name)
    return cls(msgspec.convert(options, registry.options_type(cls)))


def problems(name: str, **options: Any) -> list[str]:
    return option_problems(registry.options_type(registry.find_plugin("reward", name)), **options)


# --- math -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def boxed() -> Any:
    return reward("math")


@pytest.mark.parametrize(
    "response, answer, value",
    [
        (r"so it is \boxed{\frac{1}{2}}", "0.5", 1.0),
        (r"so it is \boxed{0.5}", r"\frac{1}{2}", 1.0),
        (r"\boxed{1,234}", "1234", 1.0),
        (r"first \boxed{3}, no: \boxed{4}", "4", 1.0),  # the last counts
        (r"first \boxed{4}, no: \boxed{3}", "4", 0.0),  # and is no set of both
        (r"\boxed{\{2, 1\}}", r"\{1, 2\}", 1.0),
        (r"\boxed{x+1}", "1+x", 1.0),
        (r"\boxed{5}", r"thus \boxed{5}", 1.0),  # a solution as the gold answer
        (r"\boxed{}", "4", 0.0),
        (r"\boxed{4", "4", 0.0),
        ("it is 4", "4", 0.0),
        ("", "4", 0.0),
    ],
)
def test_math_compares_values_in_the_last_box(boxed: Any, response: str, answer: str, value: float):
    assert boxed.score(sample_of(response, answer=answer)) == value


def test_math_grades_the_whole_response_and_cut_ones_when_asked(boxed: Any):
    whole = reward("math", graded="whole", cut=True)
    assert whole.score(sample_of("the answer is 4", answer="4")) == 1.0
    assert whole.score(sample_of(r"3 or \boxed{4}. Or 5?", answer="4")) == 1.0
    cut = sample_of(r"\boxed{4} because", answer="4", finish="length")
    assert (whole.score(cut), boxed.score(cut)) == (1.0, 0.0)


def test_math_says_which_gold_answers_it_cannot_read(boxed: Any):
    assert boxed.complaint(sample_of("", answer=r"\frac{1}{2}")) == ""
    for answer in ("", "#18", r"\boxed{}"):
        assert "cannot read" in boxed.complaint(sample_of("", answer=answer)), answer
    gsm8k = reward("math", gold_after="####")
    assert gsm8k.complaint(sample_of("", answer="6 and 12 make 18\n#### 18")) == ""
    assert gsm8k.score(sample_of(r"\boxed{18}", answer="6 and 12 make 18\n#### 18")) == 1.0
    assert "expected '####' before it" in gsm8k.complaint(sample_of("", answer="18"))


# --- python -----------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "1+2="}]


def of_both(completions: list[Any], trainer_state: Any, answer: list[str], **columns: Any) -> Any:
    """TRL's signature: 1 for the answer, no opinion on short ones, figures beside."""
    columns["log_metric"]("asked", len(completions))
    columns["log_extra"]("length", [len(c) for c in completions])
    columns["log_extra"]("text", completions)
    share = trainer_state.global_step / max(1, trainer_state.max_steps)
    return [
        None if len(c) < 2 else float(c == a) + share
        for c, a in zip(completions, answer, strict=True)
    ]


def content(completions: list[Any], **columns: Any) -> list[float]:
    assert columns["prompts"] == [MESSAGES]
    return [float(completion[0]["content"] == "#3") for completion in completions]


def lengths(completions_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float(len(ids)) for ids in completions_ids]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any, k: int):
    if solution_str == "bad":
        raise ValueError("a bad one")
    return {"score": solution_str == ground_truth, "k": k, "source": data_source}


async def compute_async(solution_str: str, ground_truth: str) -> float:
    return float(solution_str == ground_truth)


def compute_scores(
    data_sources: list[str],
    solution_strs: list[str],
    ground_truths: list[str],
    extra_infos: list[dict[str, Any]],
    k: int = 0,
) -> list[Any]:
    """verl's signature for a batch."""
    assert len({len(data_sources), len(solution_strs), len(ground_truths), len(extra_infos)}) == 1
    return [
        {"score": float(s == g), "k": k, "i": e.get("index", -1)}
        for s, g, e in zip(solution_strs, ground_truths, extra_infos, strict=True)
    ]


def by_epoch(completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
    return [trainer_state.epoch + trainer_state.num_train_epochs] * len(completions)


HERE = f"{__name__}:"


def asked(function: str, *samples: Sampled, **options: Any) -> list[Outcome]:
    return outcomes(reward("python", function=function, **options), samples)


def test_trl_functions_are_called_once_with_columns_state_and_loggers():
    samples = [
        msgspec.structs.replace(
            sample_of(text, columns={"answer": "#3", "prompt": "1+2="}), step=5, steps=10
        )
        for text in ("#3", "#4", "#")
    ]
    assert asked(HERE + "of_both", *samples) == [
        Score(1.5, {"asked": 3.0, "length": 2.0}),
        Score(0.5, {"asked": 3.0, "length": 2.0}),
        None,
    ]


def needs_gold(completions: list[str], gold: list[str]) -> list[float]:
    return [float(c == g) for c, g in zip(completions, gold, strict=True)]


def test_a_column_that_a_trl_function_needs_and_the_data_lacks_is_named():
    [error] = asked(HERE + "needs_gold", sample_of("#3", columns={"answer": "#3"}))
    said = "needs_gold needs gold: no column of this data, which has answer"
    assert str(error).startswith(said)
    assert asked(HERE + "needs_gold", sample_of("#3", columns={"gold": "#3"})) == [Score(1.0)]


def test_trl_functions_get_messages_where_the_prompt_was_messages_and_token_ids():
    sample = msgspec.structs.replace(sample_of("#3"), messages=MESSAGES, ids=[5, 6, 7])
    assert asked(HERE + "content", sample) == [Score(1.0)]
    assert asked(HERE + "lengths", sample) == [Score(3.0)]


def test_verl_functions_take_arguments_of_the_configuration_and_fail_alone():
    columns = {"data_source": "sums", "reward_model": {"ground_truth": "3"}}
    samples = [sample_of(text, columns=columns) for text in ("3", "bad", "4")]
    first, bad, last = asked(HERE + "compute_score", *samples, arguments={"k": 2})
    assert (first, last) == (Score(1.0, {"k": 2.0}), Score(0.0, {"k": 2.0}))
    assert isinstance(bad, ValueError)
    assert str(bad) == "a bad one"
    assert asked(HERE + "compute_async", *samples[::2]) == [Score(1.0), Score(0.0)]


def test_verl_functions_of_a_batch_are_called_once_for_all():
    columns = {"reward_model": {"ground_truth": "3"}, "extra_info": {"index": 7}}
    samples = [sample_of("3", columns=columns), sample_of("4", answer="4")]
    first, second = asked(HERE + "compute_scores", *samples, arguments={"k": 2})
    assert first == Score(1.0, {"k": 2.0, "i": 7.0})
    assert second == Score(1.0, {"k": 2.0, "i": -1.0})


def test_trl_functions_see_the_share_of_the_run_as_its_epoch():
    sample = msgspec.structs.replace(sample_of("a"), step=5, steps=20)
    assert asked(HERE + "by_epoch", sample) == [Score(1.25)]


def test_a_file_is_executed_once_for_all_its_functions_and_anew_when_it_changes(tmp_path: Path):
    path, log = tmp_path / "heavy.py", tmp_path / "log"
    path.write_text(
        f"with open({str(log)!r}, 'a') as log: log.write('x')\n"
        "def one(sample): return 1\n"
        "def two(sample): return 2\n"
    )
    options = PythonOptions(function=(f"{path}:one", f"{path}:two"))
    assert list(options.problems(8)) == []
    assert outcomes(Python(options), [sample_of("")])[0] == Score(3.0, {"one": 1.0, "two": 2.0})
    assert log.read_text() == "x"
    os.utime(path, ns=(0, 0))
    assert list(options.problems(8)) == []
    assert log.read_text() == "xx"


def test_a_file_is_named_as_verl_names_it(tmp_path: Path):
    path = tmp_path / "my_reward.py"
    path.write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return len(solution_str) / 100\n"
        "def other(sample):\n    return 0.5\n"
    )
    assert asked(str(path), sample_of("ab")) == [Score(0.02)]
    assert asked(f"{path}:other", sample_of("ab")) == [Score(0.5)]


MISTAKES = """
import sys
from helper_beside import half
def beside(sample): return half()
def a_number(completions, **columns): return 1.0
def a_dict(completions, **columns): return {"score": [1.0]}
def nothing(completions, **columns): pass
def leaves(solution_str, ground_truth): sys.exit(3)
def leaves_all(completions, **columns): sys.exit(3)
def of_openrlhf(queries, prompts, labels): return [1.0]
class Judge:
    def __call__(self, completions, **columns): return [2.0]
    def score(self, completions, **columns): return [3.0]
judge = Judge()
"""


@pytest.fixture
def mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "helper_beside.py").write_text("def half(): return 0.5\n")
    path = tmp_path / "mistakes_of_people.py"
    path.write_text(MISTAKES)
    return path


@pytest.mark.parametrize(
    "function, says",
    [
        ("a_number", "returned float 1.0, expected a list of 1 rewards"),
        ("a_dict", "returned dict {'score': [1.0]}, expected a list of 1 rewards"),
        ("nothing", "returned NoneType None, expected a list of 1 rewards"),
        ("leaves", "called sys.exit(3)"),
        ("leaves_all", "called sys.exit(3)"),
    ],
)
def test_what_is_no_list_of_rewards_fails_alone(mistakes: Path, function: str, says: str):
    [found] = asked(f"{mistakes}:{function}", sample_of("a"))
    assert isinstance(found, Exception)
    assert str(found) == says


def test_a_module_beside_a_rewards_file_is_found_and_objects_are_called(mistakes: Path):
    assert asked(f"{mistakes}:beside", sample_of("a")) == [Score(0.5)]
    assert asked(f"{mistakes}:judge", sample_of("a")) == [Score(2.0)]
    assert asked(f"{mistakes}:judge.score", sample_of("a")) == [Score(3.0)]


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("mistakes_of_people.py:of_openrlhf", "", "as in OpenRLHF; expected (prompts, completions"),
        ("mistakes_of_people.py:Judge", "", "is a class: name an object of it, or a function"),
        ("mistakes_of_people.py:Judge.score", "", "is a method of a class: name that of an object"),
        ("leaves.py", "raise SystemExit(4)", "SystemExit: 4"),
        ("relative.py", "from .helper import x", "name the function as package.module:callable"),
        ("lacks.py", "import none_of_these", "in the current directory and beside the file)"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_with_what_to_name(
    mistakes: Path, name: str, text: str, says: str
):
    if text:
        (mistakes.parent / name).write_text(text)
    [found] = problems("python", function=str(mistakes.parent / name))
    assert says in found


class Constant:
    """A reward that is an object: callable, and without a name of its own."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __call__(self, sample: Sampled) -> float:
        return self._value


half, quarter = Constant(0.5), Constant(0.25)


def test_callable_objects_are_told_apart_by_the_names_they_were_asked_for_by():
    names: Any = [HERE + "half", HERE + "quarter"]
    [found] = asked(names, sample_of("x"))
    assert isinstance(found, Score)
    assert (found.value, found.parts) == (0.75, {"half": 0.5, "quarter": 0.25})


def test_several_functions_are_summed_with_weights_and_one_may_have_no_opinion():
    names = [HERE + "of_both", HERE + "compute_async"]
    samples = [sample_of(t, answer="#3", columns={"answer": "#3"}) for t in ("#3", "#")]
    first, second = asked(names, *samples, weights=[1.0, 0.5])  # type: ignore[arg-type]
    assert isinstance(first, Score)
    assert isinstance(second, Score)
    assert first.value == 1.5
    assert first.parts["of_both"] == first.parts["compute_async"] == 1.0
    assert first.parts["of_both/length"] == 2.0
    assert (second.value, second.parts) == (0.0, {"compute_async": 0.0})


@pytest.mark.parametrize(
    "options, says",
    [
        ({"function": "nowhere:f"}, "function is 'nowhere:f': ModuleNotFoundError"),
        ({"function": "missing.py"}, "no such file"),
        ({"function": HERE + "MESSAGES"}, "found list, expected a callable"),
        (
            {"function": "tests.pipeline.workers.reward_functions:of_something_else"},
            "expected (prompts, completions, **columns)",
        ),
        ({"function": HERE + "compute_async", "arguments": {"j": 1}}, "does not take j"),
        ({"function": [HERE + "lengths"] * 2}, "has the same name, 'lengths'"),
        ({"function": HERE + "lengths", "weights": [1, 2]}, "2 numbers for 1 functions"),
        ({"function": []}, "empty list"),
        ({"function": HERE + "lengths", "batch": 0}, "batch: found 0, expected at least 1"),
    ],
)
def test_python_says_what_does_not_fit(options: dict[str, Any], says: str):
    assert any(says in text for text in problems("python", **options)), options


# --- sum --------------------------------------------------------------------------------------


def test_sum_weighs_its_parts_and_is_missing_where_one_is():
    total = reward("sum", of=["exact", {"python": {"function": HERE + "of_both"}, "weight": 0.5}])
    columns = {"answer": "#3"}
    right, none = outcomes(
        total, [sample_of(t, answer="3", columns=columns) for t in ("#3", "#")]
    )  # fmt: skip
    assert isinstance(right, Score)
    assert right.value == 1.5
    assert (right.parts["exact"], right.parts["python"]) == (1.0, 1.0)
    assert none is None


def test_sum_names_the_part_that_failed():
    mine = {"python": {"function": HERE + "compute_score", "arguments": {"k": 1}}, "name": "mine"}
    total = reward("sum", of=["exact", mine])
    [failed] = outcomes(total, [sample_of("bad")])
    assert isinstance(failed, ValueError)
    assert failed.__notes__ == ["in the part 'mine'"]


@pytest.mark.parametrize(
    "of, says",
    [
        ([], "of is empty"),
        ([{"exact": {}, "math": {}}], "of [0]: found exact, math, expected one reward"),
        (["exakt"], "did you mean exact?"),
        (["exact", {"exact": {"markre": "#"}}], "of [1]: exact.markre: unknown option; did you"),
        ([{"exact": {"batch": 3}}], "the sum has its own; set reward.sum.batch"),
        ([{"exact": {"marker": 3}}], "of [0]: exact.marker: Expected `str`, got `int`"),
        ([{"exact": {}, "weight": "much"}], "weight is 'much', expected a number"),
        (["exact", "exact"], "there is a part 'exact' already"),
        ([{"sum": {"of": []}}], "a sum in a sum"),
        (
            [{"math": {"graded": "box"}}],
            "of [0]: math.graded: found 'box', expected one of boxed, whole",
        ),
    ],
)
def test_sum_says_which_part_does_not_fit(of: list[Any], says: str):
    assert any(says in text for text in problems("sum", of=of))


def test_a_sum_is_written_in_a_configuration_and_its_faults_have_a_line(tmp_path: Path):
    path = tmp_path / "sum.yaml"
    text = (ROOT / "configs/quickstart.yaml").read_text()
    start = text.index("reward: ")
    end = text.index("advantage:")
    own = (
        "reward:\n  sum:\n    of:\n      - exact: {marker: '#'}\n        weight: 2\n      - maths\n"
    )
    path.write_text(text[:start] + own + text[end:])
    line = text[:start].count("\n") + 3
    with pytest.raises(ConfigError, match=rf"sum\.yaml:{line}: reward\.sum: of \[1\]: no reward"):
        load(path)
    path.write_text(path.read_text().replace("maths", "math"))
    loaded = load(path).reward
    assert loaded.options["of"][0] == {"exact": {"marker": "#"}, "weight": 2}


# --- before a run -----------------------------------------------------------------------------


async def test_answers_that_a_reward_cannot_use_are_named_by_file_and_line():
    def data(*answers: str) -> Dataset:
        found = enumerate(answers, start=1)
        items = [Item(prompt="1", tokens=b"", answer=a, columns={}, where=f"my.jsonl:{i}")
                 for i, a in found]  # fmt: skip
        return Dataset("my.jsonl", items)

    picky = "tests.pipeline.workers.reward_functions:Picky"
    plugin = Plugin(name=picky, options={})
    assert rewards.has_checks(plugin)
    config = Config(model="m", reward=plugin)
    assert await rewards.reward_problems(config, [data("3", "4"), data()]) == []
    lines = await rewards.reward_problems(config, [data("3", "four"), data("five")])
    assert lines == [
        f"my.jsonl:2: answer: found 'four', expected digits (reward.{picky})",
        f"my.jsonl:1: answer: found 'five', expected digits (reward.{picky})",
        "2 of 3 checked answers: correct them, leave them out, or choose another reward",
    ]
    [last, _] = await rewards.reward_problems(config, [data(*["3"] * 398, "four")])
    assert last.startswith("my.jsonl:399: answer: found 'four'")  # of 399 not the first 200
    refused = Plugin(name="http", options={"url": "http://127.0.0.1:9/score", "pause_s": 0.0})
    [line] = await rewards.reward_problems(Config(model="m", reward=refused), [data("3")])
    assert line.startswith("reward 'http': ServerError: http://127.0.0.1:9/score: ")
    assert "(after 3 tries); start the server" in line


# --- http -------------------------------------------------------------------------------------

Reply = Callable[[list[dict[str, Any]]], tuple[int, bytes]]


class Server:
    """A reward server as one writes it with the standard library; `reply` is what it does."""

    def __init__(self, reply: Reply) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                outer.headers.append(dict(self.headers))
                status, content = reply(body["samples"])
                self.send_response(status)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # a client that waits no longer
                    self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/score"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Server]]:
    servers: list[Server] = []

    def start(reply: Reply) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def scores(of: Callable[[dict[str, Any]], Any]) -> Reply:
    return lambda samples: (200, json.dumps({"scores": [of(s) for s in samples]}).encode())


def judged(sample: dict[str, Any]) -> Any:
    """What the server says of a response."""
    return {
        "number": 0.5,
        "parts": {"score": 1, "style": 0.25, "why": "good"},
        "null": None,
        "error": {"error": "no GPU is free"},
        "text": "0.5",
    }[sample["response"]]


@pytest.mark.fault("a proxy stands in the environment", part="rewards", by="socket")
def test_http_asks_no_proxy_for_this_machine_and_names_one_that_may_be_in_the_way(
    serve: Any, monkeypatch: pytest.MonkeyPatch
):
    """Promise: a reward server on the loopback is asked directly; where another host is asked by a
    proxy in vain, the message names the variable and no_proxy.
    Bound: at the first request.
    """
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = serve(scores(lambda sample: 0.5))
    assert reward("http", url=server.url).score(sample_of("number")) == 0.5
    with pytest.raises(Exception, match=r"or name its host in no_proxy \(set here: http_proxy\)"):
        reward("http", url="http://judge.invalid:80/score", tries=1, pause_s=0.0)


def test_http_sends_what_is_needed_and_reads_numbers_parts_null_and_errors(serve: Any):
    server = serve(scores(judged))
    asks = reward("http", url=server.url)
    assert server.requests == [{"samples": []}], "asked for nothing at the start"
    names = ("number", "parts", "null", "error", "text")
    found = outcomes(asks, [sample_of(n, answer="3", columns={"x": [1]}) for n in names])
    assert found[:3] == [Score(0.5), Score(1.0, {"style": 0.25}), None]
    assert str(found[3]) == "the server says: no GPU is free"
    assert "returned str '0.5', expected a number" in str(found[4])
    assert len(server.requests) == 2, "one request for all"
    assert server.requests[1]["samples"][0] == {
        "prompt": "", "response": "number", "answer": "3", "finish": "stop", "tokens": 6,
        "columns": {"x": [1]},
    }  # fmt: skip


def test_http_tries_again_when_the_server_is_busy_and_sends_its_token(
    serve: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    answers = iter([(200, b'{"scores": []}'), (503, b"busy"), (200, b'{"scores": [0.75]}')])
    server = serve(lambda samples: next(answers))
    asks = reward("http", url=server.url, pause_s=0.01, bearer_env="JUDGE_TOKEN")
    assert outcomes(asks, [sample_of("x")]) == [Score(0.75)]
    assert len(server.requests) == 3
    assert server.headers[0]["Authorization"] == "Bearer s3cret"


@pytest.mark.parametrize(
    "status, content, says",
    [
        (200, b"<html>", 'not JSON: .*; expected {"scores": \\[...\\]}'),
        (200, b"[1]", 'answered \\[1\\]; expected {"scores"'),
        (200, b'{"rewards": []}', 'expected {"scores"'),
        (200, b'{"scores": [1]}', "1 scores for 0 samples"),
        (404, b"no such page", "status 404: no such page$"),
        (503, b"busy", r"status 503: busy \(after 2 tries\)"),
    ],
)
def test_http_names_what_a_server_answers_wrongly_at_the_start(
    serve: Any, status: int, content: bytes, says: str
):
    server = serve(lambda samples: (status, content))
    with pytest.raises(Exception, match=says) as caught:
        reward("http", url=server.url, tries=2, pause_s=0.01)
    assert str(caught.value).startswith(server.url)


def test_http_shows_no_password_of_its_address():
    with pytest.raises(Exception, match=r"^http://\*\*\*@127.0.0.1:9/x: ") as caught:
        reward("http", url="http://me:s3c@ret@127.0.0.1:9/x", tries=1)
    assert "ret" not in str(caught.value).replace("retr", "")
    [line] = problems("http", url="ftp://me:s3cret@judge/x")
    assert line == "url is 'ftp://***@judge/x', expected http://host:port/path"


def test_http_tells_at_the_start_that_nobody_listens_and_waits_no_longer_than_it_may(serve: Any):
    server = serve(scores(judged))
    server.close()
    with pytest.raises(Exception, match=r"/score: .*[Cc]onnect.*\(after 3 tries\)"):
        reward("http", url=server.url, pause_s=0.01)
    over = threading.Event()
    slow = serve(lambda samples: (200 if over.wait(20) else 500, b'{"scores": []}'))
    with pytest.raises(Exception, match=r"timed out \(after 2 tries\)"):
        reward("http", url=slow.url, timeout_s=0.1, tries=2, pause_s=0.01)
    over.set()


@pytest.mark.parametrize(
    "options, says",
    [
        ({"url": "localhost:8000"}, "expected http://host:port/path"),
        ({"url": "http://a:b/score"}, "expected http://host:port/path"),
        ({"url": "http://a/b", "tries": 0}, "tries: found 0"),
    ],
)
def test_http_says_which_options_do_not_fit(options: dict[str, Any], says: str):
    assert any(says in text for text in problems("http", **options))


@pytest.mark.parametrize(
    "options, env, says",
    [
        ({"timeout_s": 5}, (), "workers.limit_s is 10: 3 tries of 5 s"),
        ({"bearer_env": "MY_TOKEN"}, (), "add it to workers.env"),
        ({"bearer_env": "MY_TOKEN"}, ("MY_TOKEN",), "not set here"),
    ],
)
def test_http_says_which_options_do_not_fit_the_workers(
    options: dict[str, Any], env: tuple[str, ...], says: str
):
    asked = HttpOptions(url="http://a/b", **options)
    [text] = asked.worker_problems(WorkersConfig(env=env))
    assert says in text
    of = ({"http": {"url": "http://a/b", **options}},)
    assert list(SumOptions(of=of).worker_problems(WorkersConfig(env=env))) == [
        f"of [0] http: {text}"
    ]
