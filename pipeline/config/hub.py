"""Names on the Hugging Face hub -> places in its cache on this machine, and back.

`ORG/NAME` names the newest commit of a repository, `ORG/NAME@REVISION` a branch, a tag or a
commit; of data sets `:PLACE` behind it a folder (as a rule a configuration), a file, a pattern, or
how files begin (`main/test`). Invariant: a place made here lies in the snapshot of one commit, and
`pinned` gives the name back with that commit, so that a run's saved settings fetch the same files
on any machine. What is in the cache needs no network. Only weights in safetensors, text and JSON
are fetched: no code, no pickles. Importing this module does not import huggingface_hub.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline.system.untrusted_files import UnreadableFile, read_json

DATA_ENDINGS = (".jsonl", ".json", ".parquet")
NO_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""Files about data sets, with an ending of theirs."""

_SMALL = ("*.json", "*.jinja", "*.txt", "*.model")  # settings, templates and tokenizers
_WEIGHTS = ("*.safetensors",)
_NOT = ("*/*", "consolidated*")  # folders hold other formats; the other is of Mistral's own names
_WORD = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_NAME = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>[\w./-]+))?(?::(?P<place>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CACHED = re.compile(
    r"(?P<cache>.+)/(?P<kind>model|dataset)s--(?P<org>[\w.-]+?)--(?P<name>[\w.-]+)"
    r"/snapshots/(?P<commit>[0-9a-f]{40})(?:/(?P<place>.+))?"
)
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
_ANSWER_S = 20.0  # wait for the hub's answer on what a repository holds
_SHOWN = 9  # places in a message


class HubError(Exception):
    """A name cannot be had; the message says why, and what to do."""


class HubName(msgspec.Struct, frozen=True):
    """A repository, as it was named."""

    repo: str
    revision: str = ""  # "": the newest
    place: str = ""  # within a data set; "": all of it


def parsed(given: str) -> HubName | None:
    """Read a name; None if it cannot be one.

    >>> parsed("openai/gsm8k@main:main/test")
    HubName(repo='openai/gsm8k', revision='main', place='main/test')
    >>> parsed("models/mine/last"), parsed("gpt2"), parsed("data/train.jsonl"), parsed("a/*")
    (None, None, None, None)
    """
    found = _NAME.fullmatch(given)
    if found is None or "--" in found["repo"] or ".." in given:
        return None
    if found["repo"].endswith((*DATA_ENDINGS, ".arrow", ".csv", ".txt", ".git", ".yaml")):
        return None  # a file
    return HubName(found["repo"], found["revision"] or "", found["place"] or "")


def model_folder(name: HubName, *, weights: bool) -> str:
    """Fetch what of a model is not in the cache. Raises HubError.

    Args:
        weights: False: its settings and its tokenizer are enough.
    """
    if name.place:
        raise HubError(f"{name.repo} is a model, and {name.place!r} behind it no part of one")
    repository = _Repository("model", name)
    files = [*_SMALL, *(_WEIGHTS if weights else ())]
    found = repository.folder(lambda _: files, lambda at: _is_whole_model(at, weights=weights))
    return str(found)


def data_place(name: HubName) -> str:
    """Fetch what of a data set is not in the cache; returns a folder, a file or a pattern. Raises
    HubError."""
    repository = _Repository("dataset", name)

    def files(listed: Sequence[str]) -> list[str]:
        return [_as_pattern(file) for file in _chosen(name, listed)[1]]

    def whole(folder: Path) -> bool:
        try:
            _, found = _chosen(name, _files_below(folder))
        except HubError:
            return False
        return found == [name.place] or _has_all_shards(found)

    folder = repository.folder(files, whole)
    where, _ = _chosen(name, repository.listed(folder) or _files_below(folder))
    return str(folder / where) if where else str(folder)


def pinned(path: str) -> str:
    """The name with its commit of a place in the cache; other paths as they are."""
    found = _CACHED.fullmatch(path)
    if found is None or Path(found["cache"]).resolve() != _cache():
        return path
    place = f":{found['place']}" if found["place"] else ""
    return f"{found['org']}/{found['name']}@{found['commit']}{place}"


def is_commit(revision: str) -> bool:
    return _COMMIT.fullmatch(revision) is not None


def _as_pattern(file: str) -> str:
    """A file's name as a pattern that fits nothing else."""
    return re.sub(r"([*?[])", r"[\1]", file)


def _fits(file: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)


# --- one repository ------------------------------------------------------------------------------


class _Repository:
    """A repository of a kind, "model" or "dataset", in the cache and on the hub."""

    def __init__(self, kind: str, name: HubName) -> None:
        self._kind, self._name = kind, name

    def folder(
        self, files: Callable[[Sequence[str]], list[str]], whole: Callable[[Path], bool]
    ) -> Path:
        """Return the snapshot's folder, after fetching what lacks. Raises HubError.

        Args:
            files: names in the repository -> patterns of those to fetch.
            whole: whether a folder in the cache has all that is needed, as far as it can be seen
                where the names in the repository are not known.
        """
        revision = self._name.revision
        if is_commit(revision) and (found := self._cached(revision, files, whole)):
            return found  # a commit does not change: nobody need be asked
        try:
            commit, listed = self._on_hub()
        except _Unreachable as error:
            if found := self._cached(revision or "main", files, whole):
                return found
            raise HubError(f"{error}: {self._cure()}") from error
        found = self._cached(commit, files, whole) or self._fetched(commit, files(listed))
        if revision != commit:
            self._remember(commit)
        return found

    def _on_hub(self) -> tuple[str, list[str]]:
        """The commit that the name means now, and the names of its files."""
        from huggingface_hub import HfApi, constants

        what = f"no {'data set' if self._kind == 'dataset' else self._kind} {self._name.repo}"
        try:
            info: Any = HfApi(endpoint=constants.ENDPOINT).repo_info(
                self._name.repo,
                revision=self._name.revision or None,
                repo_type=self._kind,
                timeout=_ANSWER_S,
            )
        except Exception as error:  # of the library's, of its client's, of the system's
            raise self._explained(error, what) from error
        return str(info.sha), [str(file.rfilename) for file in info.siblings or ()]

    def listed(self, snapshot: Path) -> list[str] | None:
        """Names of a commit's files, as the library keeps them beside a snapshot that it fetched;
        None: not known."""
        from huggingface_hub import errors, get_cached_repo_tree

        try:
            found = get_cached_repo_tree(
                self._name.repo,
                repo_type=self._kind,
                revision=snapshot.name,
                cache_dir=_cache(),
            )
        except errors.CachedRepoTreeNotFoundError:
            return None
        return [file.path for file in found]

    def _cached(
        self,
        revision: str,
        files: Callable[[Sequence[str]], list[str]],
        whole: Callable[[Path], bool],
    ) -> Path | None:
        """The folder of a commit, or of what a branch or a tag meant last, if it is whole."""
        folder = _cache() / f"{self._kind}s--{self._name.repo.replace('/', '--')}"
        if not is_commit(revision):
            try:
                revision = (folder / "refs" / revision).read_text("utf-8").strip()
            except (OSError, ValueError):
                return None
        snapshot = folder / "snapshots" / revision
        if not is_commit(revision) or not snapshot.is_dir():
            return None
        listed = self.listed(snapshot)
        if listed is None:
            return snapshot if whole(snapshot) else None
        patterns, unwanted = files(listed), _NOT if self._kind == "model" else ()
        wanted = [f for f in listed if _fits(f, patterns) and not _fits(f, unwanted)]
        return snapshot if all((snapshot / file).is_file() for file in wanted) else None

    def _fetched(self, commit: str, patterns: list[str]) -> Path:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.utils import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        with contextlib.suppress(OSError):  # nobody reads it
            print(f"fetching {self._name.repo} ({commit[:8]}) from the hub", file=sys.stderr)
        try:
            found = snapshot_download(
                self._name.repo,
                repo_type=self._kind,
                revision=commit,
                allow_patterns=patterns,
                ignore_patterns=[*_NOT] if self._kind == "model" else None,
                endpoint=constants.ENDPOINT,
            )
        except Exception as error:  # as above; also a full disk
            raise self._explained(error, f"{self._name.repo} has no such file") from error
        return Path(found)

    def _remember(self, commit: str) -> None:
        """Write what the name means now, as the library does, so that it is known offline."""
        folder = _cache() / f"{self._kind}s--{self._name.repo.replace('/', '--')}"
        ref = folder / "refs" / (self._name.revision or "main")
        with contextlib.suppress(OSError):  # a cache of somebody else's
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, "utf-8")

    def _explained(self, error: Exception, absent: str) -> Exception:
        """A failure of the library in the user's words."""
        from huggingface_hub import errors

        if isinstance(error, errors.OfflineModeIsEnabled):
            return _Unreachable(f"not in the cache {_cache()}, and HF_HUB_OFFLINE is set")
        if isinstance(error, errors.GatedRepoError):
            page = f"huggingface.co/{'datasets/' * (self._kind == 'dataset')}{self._name.repo}"
            why = f"{self._name.repo} is gated: accept its terms on {page}"
            return HubError(f"{why}, and log in with `hf auth login`")
        if isinstance(error, errors.RepositoryNotFoundError):
            return HubError(f"{absent} there; or it is private: log in with `hf auth login`")
        if isinstance(error, errors.RevisionNotFoundError):
            return HubError(f"{self._name.repo} has no revision {self._name.revision!r}")
        if isinstance(error, errors.HFValidationError):
            return HubError(f"no name of a repository: {error}")
        why = f"{type(error).__name__}: {error}"
        return _Unreachable(f"not in the cache {_cache()}, and the hub cannot be used ({why:.300})")

    def _cure(self) -> str:
        words = ["hf", "download", self._name.repo]
        words += ["--repo-type", "dataset"] * (self._kind == "dataset")
        words += ["--revision", self._name.revision] if self._name.revision else []
        return f"get it where there is a network, with `{' '.join(words)}`"


class _Unreachable(HubError):
    """The hub gives no answer; what is in the cache may do."""


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


# --- what is needed of it ------------------------------------------------------------------------


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def _is_whole_model(folder: Path, *, weights: bool) -> bool:
    """Whether settings, tokenizer and, if they are wanted, all weights are there."""
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return False
    if not weights or (folder / "model.safetensors").is_file():
        return True
    try:
        index = read_json(folder / "model.safetensors.index.json", _Index)
    except UnreadableFile:
        return False
    return all((folder / name).is_file() for name in set(index.weight_map.values()))


def _chosen(name: HubName, listed: Sequence[str]) -> tuple[str, list[str]]:
    """(place, its files) of a data set's files; "" is all of it. Raises HubError."""
    data = sorted(file for file in listed if _is_data(file))
    if not data:
        others = ", ".join(sorted(listed)[:_SHOWN]) or "no file"
        raise HubError(
            f"{name.repo} has no parquet or JSONL file, only {others}; the hub may have made some: "
            f"{name.repo}@refs/convert/parquet"
        )
    for place, found in _places(name.place.strip("/"), data):
        if found:
            return place, found
    folders = list(dict.fromkeys(file.partition("/")[0] for file in data if "/" in file))
    known = ", ".join(f"{name.repo}:{folder}" for folder in folders[:_SHOWN])
    if not name.place:
        raise HubError(f"{name.repo} has several parts: name one of {known}")
    raise HubError(
        f"{name.repo} has no {name.place!r}: neither a folder, a file or a pattern nor how files "
        f"begin; it has {known or ', '.join(data[:_SHOWN])}"
    )


def _places(place: str, data: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """What a place may mean, the first that has files counts."""
    if place:
        yield place, [file for file in data if file == place]
        yield place, [file for file in data if file.startswith(f"{place}/")]
        yield place, [file for file in data if fnmatch.fnmatchcase(file, place)]
        for pattern in (f"{place}-*", f"{place}.*", f"{place}*"):
            yield pattern, [file for file in data if fnmatch.fnmatchcase(file, pattern)]
        return
    yield "", [file for file in data if "/" not in file]
    yield "", [file for file in data if file.startswith("data/")]
    if len({file.partition("/")[0] for file in data}) == 1:
        yield data[0].partition("/")[0], list(data)


def _is_data(file: str) -> bool:
    last = file.rpartition("/")[2]
    return last.endswith(DATA_ENDINGS) and last not in NO_DATA and not last.startswith(".")


def _has_all_shards(files: Sequence[str]) -> bool:
    """Whether of files in numbered parts (`-00000-of-00002.`) as many are there as they say."""
    parts: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for file in files:
        if found := _SHARD.search(file):
            of = _SHARD.sub(".", file)
            parts[of], wanted[of] = parts.get(of, 0) + 1, int(found[1])
    return all(parts[of] >= count for of, count in wanted.items())


def _files_below(folder: Path) -> list[str]:
    return [
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()
    ]
