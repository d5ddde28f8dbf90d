"""Secrets of the environment, kept out of records, logs and messages."""

import os
import re
import sys
import traceback

NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(^|_)KEY($|_)|APIKEY", re.IGNORECASE)  # of variables with a secret
SHORTEST = 8  # letters of a secret: a shorter one may be a part of any word
PASSWORD = re.compile(r"(://)[^\s/@:'\"\\]*:[^\s/@'\"\\]*(?=@)")  # user:password@ in a URL, which a quote ends
QUERY = re.compile(r"([?&](?:api_?key|key|token|access_token|secret|password)=)[^\s&'\"\\)]+", re.IGNORECASE)
MASK = "***"


def masked(text: str) -> str:
    """The text without the secrets of the environment, passwords in URLs and keys in their queries."""
    secrets = {value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return QUERY.sub(rf"\1{MASK}", PASSWORD.sub(rf"\1{MASK}", text))


def has_password(url: str) -> bool:
    return PASSWORD.search(url) is not None


def mask_tracebacks() -> None:
    """What ends this process unforeseen is printed without secrets."""

    def hook(kind, error, trace) -> None:
        sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = hook
