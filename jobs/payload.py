"""The input of a job in its canonical form: what lies in the store from submit to end."""

from __future__ import annotations

import msgspec

TENSORS = "application/vnd.penstock.tensors"
"""Media type of tensors packed by ``jobs.tensors.pack_item``."""
PARTS = "application/vnd.penstock.parts"
"""Media type of several payloads by name, as the kind ``inputs`` packs them."""
JSON = "application/json"

TEXTS = "application/vnd.penstock.texts"
"""Media type of texts as msgpack: for each row a list of one string, or of two (a pair)."""


class Payload(msgspec.Struct, array_like=True, frozen=True):
    """A media type and the bytes: packed tensors or texts, or a file as it was sent (an image)."""

    media_type: str
    data: bytes
