"""Accounts for every sampled token.

Response tokens are counted once, where they leave the engine: each frame says
how many its engine has sampled in this epoch. At every event

    sampled = open + parked + trained + redundant + dropped + aborted
              + stale + lost + failed + eval

`open` and `parked` are held by live trajectories; the rest is final.
"""

from __future__ import annotations

import msgspec

FINAL = ("trained", "redundant", "dropped", "aborted", "stale", "lost", "failed", "eval")
ACCOUNTS = ("open", "parked", *FINAL)


class TokenLedger(msgspec.Struct, kw_only=True):
    """Accounts in tokens, and counters beside them."""

    sampled: int = 0
    accounts: dict[str, int] = msgspec.field(default_factory=lambda: dict.fromkeys(ACCOUNTS, 0))
    dropped_by: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    truncated: int = 0  # tokens of members trained on that were truncated
    replayed: int = 0  # tokens that were trained on once more; they are in `trained` once
    foreign: int = 0  # tokens trained on that were not sampled for their group: in no account
    prefilled_again: int = 0  # tokens that a resumed leg had to compute again
    frames_refused: int = 0  # of another epoch, duplicated
    chunks_late: int = 0  # of a leg that had ended
    appended: int = 0  # tokens that environments appended: not sampled, so in no account
    turns: int = 0  # passed to environments
    forked: int = 0  # tokens that forks began with: counted once, where they were sampled

    def sample(self, tokens: int, account: str) -> None:
        """New tokens have arrived and belong to `account`."""
        self.sampled += tokens
        self.accounts[account] += tokens

    def move(self, tokens: int, source: str, target: str, why: str = "") -> None:
        """Tokens change their account; `why` is kept for dropped ones."""
        self.accounts[source] -= tokens
        self.accounts[target] += tokens
        if target == "dropped":
            self.dropped_by[why] = self.dropped_by.get(why, 0) + tokens

    @property
    def unevaluated(self) -> int:
        """Tokens sampled for training, while no response of an evaluation is held."""
        return self.sampled - self.accounts["eval"]

    @property
    def imbalance(self) -> int:
        """Zero, or the books are wrong."""
        return self.sampled - sum(self.accounts.values())
