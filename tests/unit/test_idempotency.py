"""Idempotency-Key: which headers are one, what tells two requests apart, and what is told again."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jobs.errors import IdempotencyKeyError, KeyReusedError
from jobs.idempotency import FINGERPRINT_BYTES, Answer, Repeat, idempotency, read_key, repeat_of

ANSWER = Answer("ab" * 28, "m", 2, 1_795_000_000_000, 1_795_000_060_000)
REQUEST = (b"/predict/m", b"", b"application/json", b'{"input": [1]}')
PARTS = st.tuples(*[st.binary(max_size=40)] * 4)


# --- The header ---


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (b'"8e03978e-40d5-43e8-bc93-6894a57f9324"', b"8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (b"8e03978e-40d5-43e8-bc93-6894a57f9324", b"8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (b"!", b"!"),
        (b'"~"', b"~"),
        (rb'"a\"b"', b'a"b'),
        (rb'"a\\b"', rb"a\b"),
        (rb'"\\\""', rb"\""),
        (b'"' + b"k" * 255 + b'"', b"k" * 255),
        (b'"' + rb"\"" * 255 + b'"', b'"' * 255),
        (b"k" * 255, b"k" * 255),
        (b'"half', b'"half'),
    ],
    ids=lambda value: ascii(value[:24]),
)
def test_a_key_is_read_with_and_without_quotation_marks(header: bytes, key: bytes) -> None:
    assert read_key(header) == key


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b'""',
        b"k" * 256,
        b'"' + b"k" * 256 + b'"',
        b"a b",
        b'"a b"',
        b"a, b",
        b'"a", "b"',
        b"\xff",
        b'"\xc3\xa9"',
        b"a\tb",
        b"a\x00b",
        b'"a\x7fb"',
        b"a\r\nb",
        b"a\n",
        b" a",
    ],
    ids=lambda value: ascii(value[:24]),
)
def test_what_is_no_key_is_refused(header: bytes) -> None:
    with pytest.raises(IdempotencyKeyError) as refused:
        read_key(header)

    assert (refused.value.status, refused.value.code) == (422, "invalid-idempotency-key")


@given(st.binary(max_size=300))
def test_every_header_is_a_key_of_1_to_255_visible_characters_or_refused(header: bytes) -> None:
    try:
        key = read_key(header)
    except IdempotencyKeyError:
        return
    assert 1 <= len(key) <= 255
    assert all(0x21 <= each <= 0x7E for each in key)


@given(st.binary(min_size=1, max_size=255).map(lambda some: bytes(0x21 + each % 94 for each in some)))
def test_a_key_is_the_same_quoted_and_escaped(key: bytes) -> None:
    quoted = b'"' + key.replace(b"\\", rb"\\").replace(b'"', rb"\"") + b'"'

    assert read_key(quoted) == key


# --- What is kept ---


def test_the_same_request_has_the_same_name_and_fingerprint() -> None:
    first = idempotency(b"k", "acme", REQUEST, ANSWER)
    second = idempotency(b"k", "acme", REQUEST, Answer("cd" * 28, "m", 2, 1, 2))

    assert first.name == second.name
    assert first.kept[:FINGERPRINT_BYTES] == second.kept[:FINGERPRINT_BYTES]
    assert first.kept != second.kept


@pytest.mark.parametrize("place", range(4), ids=["path", "query", "media type", "body"])
def test_another_request_has_another_fingerprint(place: int) -> None:
    other = tuple(part + b"x" if each == place else part for each, part in enumerate(REQUEST))

    ours, theirs = idempotency(b"k", "acme", REQUEST, ANSWER), idempotency(b"k", "acme", other, ANSWER)

    assert ours.kept[:FINGERPRINT_BYTES] != theirs.kept[:FINGERPRINT_BYTES]


def test_a_key_is_of_one_tenant_and_one_route() -> None:
    names = {
        idempotency(key, tenant, (path, *REQUEST[1:]), ANSWER).name
        for key in (b"k", b"l")
        for tenant in ("acme", "other")
        for path in (b"/predict", b"/predict/m")
    }

    assert len(names) == 8


@given(PARTS, PARTS)
def test_no_two_requests_share_a_fingerprint(one: tuple[bytes, ...], other: tuple[bytes, ...]) -> None:
    assume(one != other)

    kept = [idempotency(b"k", "acme", each, ANSWER).kept[:FINGERPRINT_BYTES] for each in (one, other)]

    assert kept[0] != kept[1]


@given(st.text(max_size=8), st.binary(max_size=8), st.binary(max_size=8), st.integers(0, 8))
def test_no_part_of_a_name_passes_for_its_neighbour(tenant: str, path: bytes, key: bytes, cut: int) -> None:
    moved = (path + key[:cut], key[cut:])
    assume(moved != (path, key))

    ours = idempotency(key, tenant, (path, b"", b"", b""), ANSWER)
    theirs = idempotency(moved[1], tenant, (moved[0], b"", b"", b""), ANSWER)

    assert ours.name != theirs.name


# --- What is told again ---


def test_the_first_answer_is_told_again() -> None:
    kept = idempotency(b"k", "acme", REQUEST, ANSWER)
    again = idempotency(b"k", "acme", REQUEST, Answer("cd" * 28, "m", 2, 1, 2))

    assert repeat_of(again, kept.kept) == Repeat(ANSWER.task_id, ANSWER)


def test_an_answer_from_the_cache_is_told_again_by_its_job() -> None:
    """The store keeps the fingerprint and the id of the job that has the answer (submit.lua)."""
    ours = idempotency(b"k", "acme", REQUEST, ANSWER)

    assert repeat_of(ours, ours.kept[:FINGERPRINT_BYTES] + b"0" * 56) == Repeat("0" * 56, None)


def test_a_key_of_another_request_is_refused() -> None:
    kept = idempotency(b"k", "acme", REQUEST, ANSWER)
    other = idempotency(b"k", "acme", (*REQUEST[:3], b'{"input": [2]}'), ANSWER)

    with pytest.raises(KeyReusedError) as refused:
        repeat_of(other, kept.kept)

    assert (refused.value.status, refused.value.code) == (422, "idempotency-key-reused")
