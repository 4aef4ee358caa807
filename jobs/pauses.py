"""Paused models: their jobs are taken and wait, until the model is resumed or their deadlines pass.

The names lie in the set ``{namespace}:paused``, which has no TTL.
"""

from __future__ import annotations

from typing import cast

import redis

from jobs.errors import SetupError


def pause(client: redis.Redis, namespace: str, model: str) -> bool:
    """Let a model's jobs wait; what runs already runs to its end.

    False: it was paused before. SetupError: no such model.
    """
    fields = cast("list[bytes]", client.hkeys(f"{namespace}:models"))
    known = sorted({field.decode().rpartition("/")[0] for field in fields})
    if model not in known:
        raise SetupError(f"there is no model {model!r}; there are {', '.join(known) or 'none'}")
    return bool(client.sadd(f"{namespace}:paused", model))


def resume(client: redis.Redis, namespace: str, model: str) -> bool:
    """Let them go on, within a quarter of a second. False: it was not paused."""
    return bool(client.srem(f"{namespace}:paused", model))
