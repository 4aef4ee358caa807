"""The keys of the store: how many there are of what, and which may live without a TTL, as docs/store.md has it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final, NamedTuple

import redis

from tests.system import ROOT

PAGE: Final = ROOT / "docs" / "store.md"
FOR_EVER: Final = ("none", "swept", "the same", "Celery's")
"""How the page's column TTL begins where a key may be there without one."""
SIZES: Final = {"hash": "HLEN", "zset": "ZCARD", "set": "SCARD", "list": "LLEN", "string": "EXISTS"}


class Census(NamedTuple):
    """Every key with its number of entries; those without a TTL that the page does not allow; the memory of all."""

    sizes: dict[str, int]
    without_ttl: list[str]
    used_bytes: int

    def kinds(self) -> dict[str, int]:
        """How many keys there are of each kind, the first word of the name."""
        return dict(sorted(Counter(name.split(":")[0] for name in self.sizes).items()))


def allowed_for_ever(page: str) -> list[re.Pattern[str]]:
    """Patterns of the keys that may be there without a TTL: rows of the table whose column TTL says so."""
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\|[^|]*\| ([^|]*) \|", page, flags=re.MULTILINE)
    return [_pattern(name) for name, ttl in rows if ttl.startswith(FOR_EVER)]


def census(client: redis.Redis, namespace: str) -> Census:
    """Count all keys of the server; names are without the namespace."""
    allowed = allowed_for_ever(PAGE.read_text())
    sizes: dict[str, int] = {}
    without_ttl: list[str] = []
    for key in client.scan_iter("*", 1000):
        whole = key.decode()
        name = whole.removeprefix(f"{namespace}:")
        sizes[name] = _size(client, whole)
        if client.pttl(whole) == -1 and not (whole != name and any(each.fullmatch(name) for each in allowed)):
            without_ttl.append(name)
    used: Any = client.info("memory")
    return Census(sizes, sorted(without_ttl), int(used["used_memory"]))


def _size(client: redis.Redis, key: str) -> int:
    kind: Any = client.type(key)
    command = SIZES.get(kind.decode())
    return 0 if command is None else int(client.execute_command(command, key))  # type: ignore[no-untyped-call]


def _pattern(name: str) -> re.Pattern[str]:
    """``cost:{model}/{version}`` as a pattern: each word in braces is anything."""
    words = re.split(r"\{\w+\}|…", name)
    return re.compile(".+".join(map(re.escape, words)))
