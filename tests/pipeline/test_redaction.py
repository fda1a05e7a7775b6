"""Passwords in addresses: hidden in every form, and nothing else is."""

from __future__ import annotations

import pytest

from pipeline.redaction.passwords import secret_in_address, without_passwords

SECRET = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        "http://me:hunter2@host:8000/x",
        "http://hunter2@host",
        "http://:hunter2@host/x",
        "http://me:a@b:hunter2@host/x",
        "http://me:pass/hunter2@host/x",
        "http://me:pass?hunter2@host/x",
        "//me:hunter2@host/x",
        "no such file: https:/me:hunter2@host/x, https:/hunter2@host",
        "me:hunter2@host:8000/x",
        "postgresql+psycopg2://me:hunter2@db/mlflow",
        "'http://me:hunter2@host', 'http://you:hunter2@other'",
        "https://host/x?token=hunter2",
        "https://host/x?a=1&API_KEY=hunter2&b=2",
        "https://host/x#access_token=hunter2",
        "https://account.blob.core.windows.net/c?sv=1&sig=hunter2",
        "https://s3/x?X-Amz-Signature=hunter2",
        "https://s3/x?AWSAccessKeyId=hunter2",
        "/score?subscription-key=hunter2 was refused",
        "https://host/x?user_password=hunter2;b=1",
    ],
)
def test_a_secret_in_an_address_is_hidden_and_the_rest_stays(text: str) -> None:
    shown = without_passwords(text)
    assert SECRET not in shown
    assert "***" in shown
    if "://" in text and " " not in text:
        assert secret_in_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8000/users/@me",
        "http://host:8000/x?page=2&tokenizer_path=no",
        "write to me@example.org",
        "step 3: 4@5",
        "key=value, token=3",
        "https://host/x?author=me&keyword=b&monkey=1&design=2",
        "runs/a@b/c:d",
    ],
)
def test_what_holds_no_secret_is_shown_as_it_is(text: str) -> None:
    assert without_passwords(text) == text
    assert not secret_in_address(text)


def test_a_user_without_a_password_is_a_secret_for_http_alone() -> None:
    assert secret_in_address("https://ghp_abc@github.com/x") == "a user or password"
    assert secret_in_address("ssh://git@host/x") == ""
    assert secret_in_address("hdfs://me@host/x") == ""
    assert secret_in_address("ssh://me:hunter2@host/x") == "a user or password"
