"""Task ids: time-ordered, unique, and not to be guessed.

A task id is 56 hexadecimal digits: a body of 16 bytes and a MAC of 12 (BLAKE2b, keyed) over body and tenant.

    6 bytes  instant of issue, Unix milliseconds on the store's clock
    2 bytes  counter of the issuing process, so that ids of one millisecond keep their order
    1 byte   number of the key in the key ring
    1 byte   kind: 0 a job (a container of rows will be another kind, its rows addressed by an index behind it)
    2 bytes  retention, when a missing record stops being our fault: seconds, or hours with the highest bit set
    4 bytes  drawn at random by each issuing process

Whoever holds no key cannot make an id that passes, so a guessed, forged or foreign id is refused without
touching the store. Not promised: secrecy of the instant.
"""

from __future__ import annotations

import hmac
import os
from hashlib import blake2b

import msgspec

from jobs.errors import NotFoundError

ID_CHARS = 56
_BODY_BYTES = 16
_MAC_BYTES = 12
_KIND_JOB = 0
_IN_HOURS = 0x8000
_HOUR_S = 3600


class KeyRing(msgspec.Struct, frozen=True):
    """MAC keys by number (0..255); the newest signs, all of them verify."""

    keys: dict[int, bytes]

    @property
    def newest(self) -> int:
        """Number of the key that signs."""
        return max(self.keys)


class TaskIds:
    """Issues and verifies task ids for one process."""

    def __init__(self, ring: KeyRing, retention_s: float) -> None:
        self._ring = ring
        self._counter = 0
        self._key = ring.keys[ring.newest]
        self._tail = bytes((ring.newest, _KIND_JOB)) + _retention(retention_s) + os.urandom(4)

    def issue(self, now_ms: int, tenant: bytes) -> str:
        """A new id for ``tenant``, issued at ``now_ms``."""
        self._counter = (self._counter + 1) & 0xFFFF
        body = now_ms.to_bytes(6) + self._counter.to_bytes(2) + self._tail
        return (body + _mac(self._key, body, tenant)).hex()

    def verify(self, task_id: str, tenant: bytes) -> None:
        """Return if this ring issued ``task_id`` for ``tenant``; NotFoundError otherwise."""
        if len(task_id) == ID_CHARS:
            try:
                raw = bytes.fromhex(task_id)
            except ValueError:
                raw = b""
            # bytes.fromhex takes capitals and blanks; only the form that we issue names a record.
            if len(raw) * 2 == ID_CHARS and raw.hex() == task_id and raw[9] == _KIND_JOB:
                key = self._ring.keys.get(raw[8])
                body, mac = raw[:_BODY_BYTES], raw[_BODY_BYTES:]
                if key is not None and hmac.compare_digest(_mac(key, body, tenant), mac):
                    return
        raise NotFoundError("There is no such task for this key.")


def issued_at_ms(task_id: str) -> int:
    """When a verified id was issued, Unix milliseconds on the store's clock."""
    return int(task_id[:12], 16)


def past_retention(task_id: str, now_ms: int) -> bool:
    """Whether a verified id is so old that its record may rightly be gone."""
    kept = int(task_id[20:24], 16)
    kept_s = (kept ^ _IN_HOURS) * _HOUR_S if kept & _IN_HOURS else kept
    return now_ms - issued_at_ms(task_id) >= kept_s * 1000


def _retention(retention_s: float) -> bytes:
    """Rounded down, so that a record which is rightly gone is never called missing."""
    seconds = int(retention_s)
    kept = seconds if seconds < _IN_HOURS else _IN_HOURS | min(seconds // _HOUR_S, _IN_HOURS - 1)
    return kept.to_bytes(2)


def _mac(key: bytes, body: bytes, tenant: bytes) -> bytes:
    return blake2b(body + tenant, key=key, digest_size=_MAC_BYTES).digest()
