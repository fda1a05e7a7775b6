"""Puts a group's story into words: its events, why it stayed open, and each candidate's fate.

Fates are the ledger's words (docs/run-folder.md), with their cause in brackets. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from launch.explain.decisions import Candidate, Decided, Ended, Opened, Story
from launch.run_files.records import Straggler
from launch.run_files.step_facts import StepFacts
from pipeline.observability.critical_path import by_kind
from pipeline.system.terminal_text import counted

KINDS_SHOWN = 4
"""Kinds of wait that are shown of a critical path."""
NAMED = 6
"""Largest number of candidates that a sentence names."""
_LATE_S = 0.1  # lines have the time of their writing: a step may seem to begin after its first line

_ACTIONS = {
    "Sample": "more candidates",
    "Include": "add a response that was not sampled here",
    "Abort": "stop and leave out",
    "Stop": "end now, keep the tokens",
    "Park": "set aside",
    "Enough": "it could close now, but stays open",
    "Finalize": "choose",
    "Defer": "give the prompt back",
    "Drop": "drop the group",
}
_SOURCES = {
    "stored": "the prompt's newest success that was trained on before",
    "solution": "the data's solution (data.solution)",
}
_FATES = {
    "dropped": "dropped (its prompt is not used again in this epoch)",
    "deferred": "deferred (its prompt was given back and will be used again)",
}
# phrases of the built-in selectors -> their meaning
_PHRASES = {
    "at the barrier": "at the barrier: when the step had enough groups and closed",
    "of all": "of all: every candidate had ended when the group closed",
}


class Clock:
    """Seconds since the group's step began; since the group's first line if that is not known."""

    def __init__(self, story: Story, step: StepFacts | None) -> None:
        evaluated = story.ended is not None and story.ended.kind == "eval"  # in no step
        first = None if evaluated else next((line for line in story.lines if line.time), None)
        self._since = first.time if first is not None else 0.0
        self.origin = "its first line on file"
        if step is not None and step.since and self._since > step.since - _LATE_S:
            self._since, self.origin = step.since, f"the start of step {step.step + 1}"

    @property
    def known(self) -> bool:
        return self._since > 0

    def seconds_at(self, line: Opened | Decided | Ended) -> float:
        return max(0.0, line.time - self._since)

    def time_text(self, line: Opened | Decided | Ended) -> str:
        """Returns ` at 0.41 s`; '' for a line of an older run."""
        return f" at {self.seconds_at(line):.2f} s" if self.known and line.time else ""


def story_in_words(story: Story, text: str, step: StepFacts | None) -> Iterator[str]:
    """Yields the whole story, line by line.

    Args:
        text: the prompt; '' if not known.
        step: the step of the group's first line; None if it has not ended.
    """
    ended, clock = story.ended, Clock(story, step)
    kind = "held-out " if ended is not None and ended.kind == "eval" else ""
    attempt = f", attempt {ended.attempt + 1}" if ended is not None and ended.attempt else ""
    yield f"group {story.group}: {kind}prompt {story.prompt}{attempt}"
    if text:
        yield f"    {text.strip()}"
    yield ""
    events = [
        f"step {line.step + 1}{clock.time_text(line)}: {_event(line, story)}"
        for line in story.lines
    ]
    if ended is None:
        events.append("it had not ended when the file was read")
    yield from (f"{number}. {event}" for number, event in enumerate(events, start=1))
    if story.again is not None:
        yield f"   (its prompt came again in group {story.again})"
    yield from _notes(story, clock, step)
    if ended is None:
        return
    yield ""
    yield from _table(story, ended)
    for member, variant in ended.variants.items():
        yield f"{member} had {variant} of the data behind its prompt"
    for member, source in ended.foreign.items():
        yield f"{member} was not sampled here: {_SOURCES.get(source, source)}"
    for member, (origin, tokens) in ended.forks.items():
        yield f"{member} began with the first {tokens} tokens of {origin}"
    if gone := sorted(_left_before(story, ended)):
        yield f"aborted before the group ended (their lengths are not on file): {_ids(gone)}"
    if cut := sum(1 for m in ended.members if _hit_limit(m, story)):
        yield (
            f"{cut} hit sampling.max_tokens: {'that limit' if cut == 1 else 'the limit'} ended "
            f"{'it' if cut == 1 else 'them'}, not the selector"
        )
    if ended.kind != "eval":
        yield ""
        yield (
            f"{sum(m.chosen for m in ended.members)} of {len(ended.members)} candidates chosen; "
            f"{ended.trained} of {ended.sampled} response tokens trained on, "
            f"longest {ended.longest}"
        )
        if ended.advantage_why:
            yield f"advantages: {ended.advantage_why}"


def _event(line: Opened | Decided | Ended, story: Story) -> str:
    if isinstance(line, Opened):
        return f"opened with {counted(line.candidates, 'candidate')}{reason_text(line.note)}"
    if isinstance(line, Decided):
        who = f" {_ids(line.ids)}" if line.ids else ""
        return (
            f"{line.action}, {_ACTIONS.get(line.action, line.action)}{who}{reason_text(line.why)}"
        )
    if line.replay_of >= 0:
        return f"trained on once more: the members of group {line.replay_of}"
    said_before = bool(story.decisions) and story.decisions[-1].why == line.why
    return _FATES.get(line.fate, line.fate) + ("" if said_before else reason_text(line.why))


def reason_text(why: str) -> str:
    return f": {why}" if why else ""


def _ids(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids))


# --- what it waited for -----------------------------------------------------------------


def _notes(story: Story, clock: Clock, step: StepFacts | None) -> Iterator[str]:
    """Yields why the group stayed open, the meaning of phrases, and the origin of the times."""
    notes = [*_waited(story, clock, step)]
    whys = [line.why for line in story.decisions]
    for phrase, meaning in _PHRASES.items():
        if any(why.endswith(phrase) for why in whys):
            notes.append(meaning)
    if clock.known:
        notes.append(f"times count from {clock.origin}")
    if notes:
        yield ""
    yield from notes


def _waited(story: Story, clock: Clock, step: StepFacts | None) -> Iterator[str]:
    ended = story.ended
    if ended is None or ended.kind == "eval":
        return
    actions = {line.action: line for line in story.decisions}  # the last of each
    closed = next((actions[v] for v in ("Finalize", "Defer", "Drop") if v in actions), ended)
    enough = actions.get("Enough")
    running = [m for m in ended.members if m.state == "aborted" and _abort(m, story) is None]
    if running:
        action = "was" if len(running) == 1 else "were"
        until = f"{_named(running)} still ran when it closed and {action} aborted"
    elif ended.members:
        until = f"it closed when its last candidate had ended; the longest is {_longest(ended)}"
    else:
        until = "it closed without a candidate"
    yield f"{_stayed(enough or story.budget, closed, clock)}: {until}"
    if step is not None:
        yield from (_last(known) for known in step.stragglers if known.group == story.group)
    if isinstance(closed, Decided) and closed.action == "Finalize" and closed.time and ended.time:
        yield (
            f"closed{clock.time_text(closed)}; {ended.fate} "
            f"{max(0.0, ended.time - closed.time):.2f} s later, with the step's other groups"
        )


def _stayed(begun: Opened | Decided | None, closed: Opened | Decided | Ended, clock: Clock) -> str:
    """Says how long the group stayed open, or stayed open after it had enough."""
    longer = isinstance(begun, Decided)
    said = f"enough{clock.time_text(begun)}, then open" if isinstance(begun, Decided) else "open"
    if begun is None or not begun.time or not closed.time:
        return said
    seconds = max(0.0, closed.time - begun.time)
    return f"{said} for {seconds:.2f} s{' more' if longer else ''}"


def _longest(ended: Ended) -> str:
    return _named([max(ended.members, key=lambda member: member.tokens)])


def _last(known: Straggler) -> str:
    return (
        f"of its trained members {known.trajectory} ({known.tokens} tokens) ended last, "
        f"{known.waited_s:.2f} s after half of them"
    )


def _named(members: Sequence[Candidate]) -> str:
    longest = sorted(members, key=lambda member: -member.tokens)
    said = ", ".join(f"{m.id} ({m.tokens} tokens)" for m in longest[:NAMED])
    more = len(members) - NAMED
    return f"{said} and {more} shorter ones" if more > 0 else said


# --- candidates -------------------------------------------------------------------------


def _left_before(story: Story, ended: Ended) -> set[int]:
    """Returns candidates that an Abort removed: they are not in the group's table."""
    named = {i for line in story.decisions for i in line.ids}
    return named - {member.id for member in ended.members}


def _table(story: Story, ended: Ended) -> Iterator[str]:
    yield f"{'candidate':>9} {'tokens':>7} {'confidence':>11} {'reward':>8} {'versions':>9}  fate"
    for m in sorted(ended.members, key=lambda member: member.id):
        reward = "-" if m.reward is None else f"{m.reward:.3g}"
        confidence = f"{m.confidence:.3f}" if m.tokens else "-"
        versions = f"{m.versions[0]}-{m.versions[-1]}" if len(m.versions) > 1 else _ids(m.versions)
        fate, why = fate_of(m, story, ended)
        yield (
            f"{m.id:>9} {m.tokens:>7} {confidence:>11} {reward:>8} {versions or '-':>9}  "
            f"{fate}{f' ({why})' if why else ''}"
        )


def fate_of(member: Candidate, story: Story, ended: Ended) -> tuple[str, str]:
    """Returns the ledger's word for a candidate, and its cause; '' if that is obvious."""
    if member.state == "aborted":
        return "aborted", _why_aborted(member, story, ended)
    fate, why = _account(member, story, ended)
    return fate, "; ".join(filter(None, (why, _cut(member, story), _turns(member))))


def _account(member: Candidate, story: Story, ended: Ended) -> tuple[str, str]:
    if ended.fate == "evaluated":
        return "eval", ""
    if ended.fate != "trained":
        chosen = "chosen, but " if member.chosen else ""
        fate = "stale" if ended.why == "stale" else "dropped"
        return fate, f"{chosen}its group was {ended.fate}{reason_text(ended.why)}"
    known = {id_: (advantage, weight) for id_, advantage, weight in ended.advantages}
    advantage, weight = known.get(member.id, (0.0, 1.0))
    if member.chosen:
        scaled = f", weight {weight:g}" if weight != 1 else ""
        return "trained", f"advantage {advantage:+.3g}{scaled}" if known else ""
    if member.id in known:
        return "redundant", "in the baseline alone: its weight is 0"
    if member.reward is None and any(
        line.action == "Finalize" and member.id in line.ids for line in story.decisions
    ):
        return "failed", "it has no reward"
    return "redundant", "not chosen"


def _turns(member: Candidate) -> str:
    """Returns '' if the environment was not called."""
    return (
        f"{counted(member.turns, 'turn')}, {counted(member.appended, 'token')} appended"
        if member.turns
        else ""
    )


def _cut(member: Candidate, story: Story) -> str:
    if _hit_limit(member, story):
        return "hit sampling.max_tokens"
    stop = _named_by("Stop", member, story)
    return f"stopped by the selector{reason_text(stop.why)}" if stop is not None else ""


def _hit_limit(member: Candidate, story: Story) -> bool:
    return member.state == "truncated" and _named_by("Stop", member, story) is None


def _abort(member: Candidate, story: Story) -> Decided | None:
    return _named_by("Abort", member, story)


def _named_by(action: str, member: Candidate, story: Story) -> Decided | None:
    found = (line for line in story.decisions if line.action == action and member.id in line.ids)
    return next(found, None)


def _why_aborted(member: Candidate, story: Story, ended: Ended) -> str:
    abort = _abort(member, story)
    if abort is not None:
        return abort.why or "by the selector"
    was = "still ran" if member.tokens else "had no token yet"
    if ended.fate != "trained":
        return f"{was} when its group was {ended.fate}{reason_text(ended.why)}"
    return f"{was} {'at the barrier' if 'at the barrier' in ended.why else 'when its group closed'}"


# --- many groups ------------------------------------------------------------------------


def step_in_words(step: StepFacts) -> Iterator[str]:
    """Yields a step's seconds and reward, and the kinds of wait that took most of its time."""
    groups = ", ".join(f"{number} {fate}" for fate, number in step.groups.items())
    yield (
        f"step {step.step + 1}: {step.seconds:.2f} s, mean reward {step.reward:.2f}, "
        f"groups: {groups or 'none'}"
    )
    if step.critical_path:
        kinds = by_kind([step.critical_path])[:KINDS_SHOWN]
        waits = ", ".join(f"{seconds:.2f} s {lane}: {what}" for lane, what, seconds in kinds)
        yield f"longest waits on its critical path: {waits}"
    yield ""


def costs_in_words(groups: Iterable[Ended]) -> Iterator[str]:
    """Yields one line for each group."""
    yield (
        f"{'group':>7} {'step':>5} {'prompt':>7}  tokens: {'not trained':>11} {'trained':>8} "
        f"{'longest':>8}  fate"
    )
    for g in groups:
        yield (
            f"{g.group:>7} {g.step + 1:>5} {g.prompt:>7}          {g.wasted:>11} {g.trained:>8} "
            f"{g.longest:>8}  {g.fate}{reason_text(g.why)}"
        )
