"""Instants on the wire, and the records that carry them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.estimates import Told
from jobs.records import (
    MISS,
    SCHEMA,
    Document,
    Head,
    JobError,
    decode_head,
    encode_document,
    encode_head,
    from_cache,
    instant,
    line_of,
    next_generation,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z."""


def _expected(ms: int) -> str:
    at = EPOCH + timedelta(milliseconds=ms)
    return at.strftime("%Y-%m-%dT%H:%M:%S") + f".{at.microsecond // 1000:03d}Z"


@given(st.integers(0, LAST_MS))
def test_an_instant_is_rfc_3339_in_utc(ms: int) -> None:
    assert instant(ms) == _expected(ms)


@given(st.integers(1, LAST_MS // 1000 - 1), st.permutations((-1001, -1000, -999, -1, 0, 1, 999, 1000)))
def test_the_seconds_beside_each_other_do_not_mix(second: int, around: list[int]) -> None:
    assert [instant(second * 1000 + ms) for ms in around if second * 1000 + ms >= 0] == [
        _expected(second * 1000 + ms) for ms in around if second * 1000 + ms >= 0
    ]


@pytest.mark.parametrize(
    ("ms", "expected"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (1_795_000_000_123, "2026-11-18T11:06:40.123Z"),
        (1_709_164_799_999, "2024-02-28T23:59:59.999Z"),
        (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
        (LAST_MS, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_known_instants(ms: int, expected: str) -> None:
    assert instant(ms) == expected


def test_threads_do_not_give_each_other_s_seconds() -> None:
    def check(offset: int) -> list[int]:
        instants = range(offset * 1_000, 2_000_000 + offset * 1_000, 1_000)
        return [ms for ms in instants if instant(ms) != _expected(ms)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(check, range(8))) == [[]] * 8


HEAD = Head(SCHEMA, "acme", "m", 2, "bulk", 1, 2, 3, "a/b", b"\0sha", "req", "00-ab")


def test_a_head_travels_unchanged() -> None:
    assert decode_head(encode_head(HEAD)) == HEAD


def test_a_job_waits_in_the_line_of_its_pool_lane_model_and_version() -> None:
    assert line_of("gpu", HEAD.lane, HEAD.model, HEAD.version) == "gpu/bulk/m/2"


def _written(**rest: object) -> dict[str, object]:
    document = Document("id", "failed", "m", 1, 1, "then", "now", **rest)  # type: ignore[arg-type]
    read: dict[str, object] = json.loads(encode_document(document))
    return read


def test_a_document_has_a_result_or_an_error_and_not_the_other() -> None:
    error = JobError("internal", "why", retryable=True, stage="inference", attempt=1)

    assert "error" not in _written(result=None)
    assert _written(result=None)["result"] is None
    assert "result" not in _written(error=error)


# --- A document that the result cache answers with ---

MARKER = ',"cache":{"status":"miss"}}'
RESULTS = {
    "a number": 1,
    "text that ends as the marker does": MARKER,
    "an object that ends as the marker does": {"y": 1, "cache": {"status": "miss"}},
    "nested objects that end as the marker does": {"y": {"z": {"y": 1, "cache": {"status": "miss"}}}},
    "an object that is the marker": {"cache": {"status": "miss"}},
    "an empty object": {},
    "nothing": None,
}


def _completed(result: object, **rest: object) -> bytes:
    return encode_document(Document("id", "completed", "m", 1, 1, "then", "now", result=result, **rest))  # type: ignore[arg-type]


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_a_hit_is_the_document_as_it_was_but_for_how_it_came_by_its_answer(result: object) -> None:
    document = _completed(result, cache=MISS)

    hit = from_cache(document, "hit", 1_500)

    assert hit == document[: -len(MARKER)] + b',"cache":{"status":"hit","age_s":1.5}}'
    assert json.loads(hit) == json.loads(document) | {"cache": {"status": "hit", "age_s": 1.5}}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_a_document_that_does_not_say_miss_is_whole_but_for_its_last_brace(result: object) -> None:
    """Of a job that was run again: its second generation is not for the cache, and does not say so."""
    document = _completed(result)

    hit = from_cache(document, "hit", 0)

    assert hit == document[:-1] + b',"cache":{"status":"hit","age_s":0.0}}'
    assert json.loads(hit) == json.loads(document) | {"cache": {"status": "hit", "age_s": 0.0}}


def test_a_failure_is_told_again_in_the_same_way() -> None:
    error = JobError("invalid-input", "why", retryable=False, stage="preprocess", attempt=1)
    document = encode_document(Document("id", "failed", "m", 1, 1, "then", "now", error=error, cache=MISS))

    assert json.loads(from_cache(document, "hit", 20)) == json.loads(document) | {
        "cache": {"status": "hit", "age_s": 0.02}
    }


@pytest.mark.parametrize("told", [None, Told(2, 300, 400, 500)])
def test_a_head_keeps_what_its_job_was_told(told: Told | None) -> None:
    head = Head(SCHEMA, "acme", "m", 2, "bulk", 100, 700, 3, "a/b", b"sha", estimate=told)

    assert decode_head(encode_head(head)).estimate == told


def test_a_job_that_is_run_again_has_its_time_anew_and_no_part_in_the_cache() -> None:
    head = Head(SCHEMA, "acme", "m", 2, "bulk", 100, 700, 3, "a/b", b"sha", estimate=Told(1, 2, 3, 4), cached=True)

    again = next_generation(head, 5_000)

    assert (again.queued_at_ms, again.deadline_at_ms, again.generation) == (5_000, 5_600, 2)
    assert (again.estimate, again.cached) == (None, False)
