"""Every sampled token is in exactly one account."""

from __future__ import annotations

import pytest

from pipeline.coordinator.token_ledger import ACCOUNTS, FINAL, TokenLedger


def test_new_tokens_are_counted_once_and_balance() -> None:
    ledger = TokenLedger()
    ledger.sample(5, "open")
    ledger.sample(2, "lost")
    assert (ledger.sampled, ledger.accounts["open"], ledger.accounts["lost"]) == (7, 5, 2)
    assert ledger.imbalance == 0


def test_a_move_changes_accounts_but_no_sum() -> None:
    ledger = TokenLedger()
    ledger.sample(5, "open")
    ledger.move(3, "open", "parked")
    ledger.move(2, "open", "trained")
    assert (ledger.accounts["open"], ledger.accounts["parked"], ledger.accounts["trained"]) == (
        0,
        3,
        2,
    )
    assert ledger.imbalance == 0


def test_dropped_tokens_are_kept_by_reason() -> None:
    ledger = TokenLedger()
    ledger.sample(9, "open")
    ledger.move(4, "open", "dropped", "surplus")
    ledger.move(3, "open", "dropped", "surplus")
    ledger.move(2, "open", "dropped", "no weight")
    assert ledger.dropped_by == {"surplus": 7, "no weight": 2}
    assert sum(ledger.dropped_by.values()) == ledger.accounts["dropped"]


def test_an_unknown_account_is_an_error_of_ours() -> None:
    with pytest.raises(KeyError):
        TokenLedger().sample(1, "somewhere")


def test_lost_books_show_as_imbalance() -> None:
    ledger = TokenLedger()
    ledger.sample(5, "open")
    ledger.accounts["open"] -= 1
    assert ledger.imbalance == 1


def test_open_and_parked_are_the_only_accounts_that_are_not_final() -> None:
    assert set(ACCOUNTS) - set(FINAL) == {"open", "parked"}
