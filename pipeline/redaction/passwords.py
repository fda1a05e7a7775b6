"""Finds passwords and tokens in text: to hide them where it is shown, to refuse them in settings.

The only place that knows what a secret in an address looks like: a user and password before the
host, or a parameter with a telling name. Pure.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

_HIDDEN = "***"
_PARAMETER = (
    r"token(?!iz)|secret|passw|passphrase|pwd|credential|signature|api_?key|access_?key|private_?key|"
    r"jwt|bearer|(?<![a-z])(?:key|sig|auth|pass)(?![a-z])"
)
_PARAMETER_NAME = re.compile(_PARAMETER, re.IGNORECASE)
# What stands before the last @ of an authority; a port with a path behind it is no password. A path
# has one slash where the address had two. Lengths are limited, or a text could take minutes.
_USER = re.compile(
    r"(?<=[:/]/)(?![^\s/@:'\"]+:\d{1,5}[/?#])(?:[^\s/@:'\"<>]{0,512}:[^\s'\"<>]{0,512}|[^\s/@'\"<>]{0,512})@"
)
_USER_WITHOUT_SCHEME = re.compile(r"(?<![\w/.:+-])[\w.+-]{1,512}:[^\s/@'\"<>]{1,512}@(?=\w)")
_QUERY = re.compile(
    r"([?&;#][\w.%+-]{0,64}?(?:" + _PARAMETER + r")[\w.%+-]{0,64}=)[^&;\s'\"<>]+", re.IGNORECASE
)
_ADDRESS = re.compile(r"\b([a-z][a-z0-9+.-]*)://([^\s'\"<>]+)", re.IGNORECASE)
_WEB = frozenset({"http", "https", "ws", "wss"})


def without_passwords(text: str) -> str:
    """Leave out user and password of every address in a text, and tokens among its parameters.

    >>> without_passwords("http://me:secret@host:8000/path?api_key=abc&page=2")
    'http://***@host:8000/path?api_key=***&page=2'
    """
    if "@" in text:
        text = _USER_WITHOUT_SCHEME.sub(f"{_HIDDEN}@", _USER.sub(f"{_HIDDEN}@", text))
    return _QUERY.sub(rf"\1{_HIDDEN}", text) if "=" in text else text


def secret_in_address(text: str) -> str:
    """Name the kind of secret in an address of this text; '' if there is none.

    A user without a password is one for http, where tokens are given so; ssh://git@host is not.

    >>> secret_in_address("see https://host/x?page=2&access_token=abc")
    'the parameter access_token'
    """
    for scheme, rest in _ADDRESS.findall(text):
        user = _USER.match(f"//{rest}", 2)
        if user and (scheme.lower() in _WEB or ":" in user[0]):
            return "a user or password"
        for name, value in parse_qsl(re.sub("[?#;]", "&", rest)):
            if value and _PARAMETER_NAME.search(name):
                return f"the parameter {name}"
    return ""
