"""Reward `http`: a server is asked for the rewards, many responses in one request.

POST of `{"samples": [{"prompt", "response", "answer", "finish", "tokens", "columns"}, ...]}`;
the answer is `{"scores": [...]}` with a number for each, or an object with "score" (its other
numbers are parts), an object with "error", or null for no opinion. Before a run it is
asked for no samples at all, so that a server that is not there, or answers otherwise, is told
of early. At most `workers.count` requests are under way, each of at most `batch` responses.
"""

from __future__ import annotations

import ipaddress
import os
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import httpx
import msgspec

from pipeline.plugins.interfaces import RewardOptions, WorkerSettings
from pipeline.plugins.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from pipeline.plugins.registry import register
from pipeline.plugins.views import Sampled
from pipeline.redaction.passwords import without_passwords

_SENT = ("prompt", "response", "answer", "finish", "tokens", "columns")
_AGAIN = frozenset({429, 500, 502, 503, 504})  # it may be better in a moment
_ANSWER_BYTES = 16 << 20


class ServerError(Exception):
    """The reward server could not be asked, or answered what is no answer; the text names it."""


class HttpOptions(RewardOptions, frozen=True, kw_only=True):
    """Options of the `http` reward."""

    url: str
    """Where to POST: http://host:port/path. Neither with a password nor with a token in it:
    see `bearer_env`."""
    timeout_s: PositiveFloat = 2.0
    """Seconds that one request may take."""
    tries: PositiveInt = 3
    """Requests for one call: again after no connection, no answer in time, or a status of 429, 500,
    502, 503 or 504."""
    pause_s: NonNegativeFloat = 0.25
    """Pause before the second of them; each later one is twice as long."""
    bearer_env: str = ""
    """Variable that holds a token to be sent as `Authorization: Bearer ...`; name it in
    `workers.env` too.
    Empty: none is sent."""

    def problems(self, group_size: int) -> Iterator[str]:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            yield f"url is {without_passwords(self.url)!r}: {error}; expected http://host:port/path"
        else:
            if url.scheme not in ("http", "https") or not url.host:
                yield f"url is {without_passwords(self.url)!r}, expected http://host:port/path"

    def worker_problems(self, workers: WorkerSettings) -> Iterator[str]:
        longest = self.tries * self.timeout_s + sum(_pauses(self.tries, self.pause_s))
        if longest > workers.limit_s:
            yield (
                f"timeout_s is {self.timeout_s:g}, but workers.limit_s is {workers.limit_s:g}: "
                f"{self.tries} tries of {self.timeout_s:g} s with their pauses may take "
                f"{longest:g} s: raise workers.limit_s, or lower timeout_s or tries"
            )
        if self.bearer_env and self.bearer_env not in workers.env:
            yield (
                f"bearer_env is {self.bearer_env!r}, but workers do not see it: add it to "
                "workers.env"
            )
        elif self.bearer_env and not os.environ.get(self.bearer_env):
            yield f"bearer_env is {self.bearer_env!r}, a variable that is not set here"


@register("reward", "http")
class Http:
    Options = HttpOptions

    def __init__(self, options: HttpOptions) -> None:
        """Raises ServerError if the server is not there, or answers something else."""
        self._options, self._shown = options, without_passwords(options.url)
        headers = {"Content-Type": "application/json"}
        if options.bearer_env:
            headers["Authorization"] = f"Bearer {os.environ[options.bearer_env]}"
        # A proxy of the environment has another loopback than this machine.
        own = _is_loopback(httpx.URL(options.url).host)
        self._client = httpx.Client(headers=headers, timeout=options.timeout_s, trust_env=not own)
        self._cure = "start the server, or mend reward.http.url"
        if not own and (proxies := urllib.request.getproxies_environment()):
            names = ", ".join(f"{name}_proxy" for name in proxies if name != "no")
            self._cure += f", or name its host in no_proxy (set here: {names})" if names else ""
        self.score_all([])

    def complaint(self, sample: Sampled) -> str:
        """Nothing: that this was built says that the server answers."""
        del sample
        return ""

    def score(self, sample: Sampled) -> Any:
        [result] = self.score_all([sample])
        return result

    def score_all(self, samples: Sequence[Sampled]) -> list[Any]:
        sent = [{name: getattr(sample, name) for name in _SENT} for sample in samples]
        content = self._asked(msgspec.json.encode({"samples": sent}))
        return [_result(found) for found in self._scores(content, len(samples))]

    def _asked(self, body: bytes) -> bytes:
        """The answer's content, after as many tries as it takes. Raises ServerError."""
        pauses = _pauses(self._options.tries, self._options.pause_s)
        for pause_s in (*pauses, None):
            try:
                return self._once(body)
            except (httpx.TransportError, _Again) as error:
                if pause_s is None:
                    why = str(error) or type(error).__name__
                    raise ServerError(
                        f"{self._shown}: {why} (after {self._options.tries} tries); {self._cure}"
                    ) from error
                time.sleep(pause_s)
        raise AssertionError("the last pause is None")

    def _once(self, body: bytes) -> bytes:
        # The timeout of httpx is between two bytes: a server that drips is cut off here.
        deadline = time.monotonic() + self._options.timeout_s
        with self._client.stream("POST", self._options.url, content=body) as answer:
            content = bytearray()
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _ANSWER_BYTES:
                    raise ServerError(
                        f"{self._shown}: an answer of more than {_ANSWER_BYTES} bytes"
                    )
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("timed out")
            if answer.status_code in _AGAIN:
                raise _Again(_status(answer.status_code, content))
            if answer.status_code != httpx.codes.OK:
                raise ServerError(f"{self._shown}: {_status(answer.status_code, content)}")
        return bytes(content)

    def _scores(self, content: bytes, count: int) -> list[Any]:
        """Raises ServerError unless it is `{"scores": [...]}` with so many entries."""
        url, rule = self._shown, 'expected {"scores": [...]}'
        try:
            answer = msgspec.json.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ServerError(f"{url}: not JSON: {error}; {rule}") from error
        fields = cast(dict[str, Any], answer) if isinstance(answer, dict) else {}
        scores: Any = fields.get("scores")
        if not isinstance(scores, list):
            raise ServerError(f"{url}: answered {answer!r:.200}; {rule}")
        found = cast(list[Any], scores)
        if len(found) != count:
            raise ServerError(f"{url}: {len(found)} scores for {count} samples; {rule}, one each")
        return found


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine's own loopback.

    >>> [_is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "judge", "10.0.0.1")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Again(Exception):
    """A status after which one may ask again."""


def _status(status: int, content: bytes | bytearray) -> str:
    return f"status {status}: {content[:200].decode(errors='replace')}"


def _pauses(tries: int, first_s: float) -> list[float]:
    """Returns the seconds to wait between so many tries.

    >>> _pauses(4, 0.25)
    [0.25, 0.5, 1.0]
    """
    return [first_s * 2**index for index in range(tries - 1)]


def _result(found: Any) -> Any:
    if isinstance(found, dict) and "error" in found and "score" not in found:
        entry = cast(Mapping[str, Any], found)
        return ServerError(f"the server says: {entry['error']!s:.500}")
    return found
