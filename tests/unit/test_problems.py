"""Refusals: one form for every error, bounded, and honest about when to come back."""

from __future__ import annotations

import re

import msgspec
import pytest

from api.problems import MEDIA_TYPE, Problem, Refusal, known, refusal
from jobs.errors import InvalidInputError, MalformedError, PenstockError, StoreUnavailableError, UnauthorizedError

ERRORS = sorted(known().values(), key=lambda error: error.code)
HOSTILE = ["x" * 5_000, "\x01" * 5_000, "\N{GRINNING FACE}" * 5_000, '"\\' * 5_000, "\r\n" * 5_000]


def _all(base: type[PenstockError]) -> list[type[PenstockError]]:
    below = base.__subclasses__()
    return below + [each for one in below for each in _all(one)]


def _read(said: Refusal) -> Problem:
    return msgspec.json.decode(said.body, type=Problem)


def test_no_two_errors_share_a_code() -> None:
    codes = [error.code for error in _all(PenstockError)]

    assert len(codes) == len(set(codes)) == len(known())


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_every_error_has_a_kebab_case_code_a_title_and_a_meaning(error: type[PenstockError]) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error.code)
    assert error.title
    assert error.__doc__


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
def test_every_error_renders_as_problem_json(error: type[PenstockError]) -> None:
    said = refusal(error("why", pointer="/a"), "/predict/m", "req-1")

    problem = _read(said)
    assert said.headers[0] == (b"content-type", MEDIA_TYPE)
    assert said.status == problem.status == error.status
    assert 400 <= said.status <= 503
    assert (problem.type, problem.title) == (f"/problems/{error.code}", error.title)
    assert (problem.detail, problem.instance, problem.request_id) == ("why", "/predict/m", "req-1")
    assert problem.retryable is error.retryable
    assert [(each.pointer, each.detail) for each in problem.errors] == [("/a", "why")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_no_refusal_is_longer_than_4_kb(error: type[PenstockError], hostile: str) -> None:
    said = refusal(error(hostile, pointer=hostile), hostile, "r" * 64)

    assert len(said.body) < 4_096
    assert _read(said).status == error.status


def test_a_hostile_path_is_cut() -> None:
    assert len(_read(refusal(MalformedError("why"), "/" + "x" * 5_000)).instance) == 200


def test_the_plain_case_is_told_whole() -> None:
    problem = _read(refusal(MalformedError("x" * 1_000), "/y"))

    assert (problem.detail, problem.errors) == ("x" * 1_000, ())


@pytest.mark.parametrize("error", [each for each in ERRORS if each.status == 503], ids=lambda error: error.code)
def test_our_capacity_always_says_when_to_come_back(error: type[PenstockError]) -> None:
    assert (b"retry-after", b"1") in refusal(error("why")).headers


@pytest.mark.parametrize(("given_s", "said_s"), [(0.05, b"1"), (1.0, b"1"), (1.2, b"2"), (30.0, b"30")])
def test_retry_after_is_whole_seconds_and_at_least_one(given_s: float, said_s: bytes) -> None:
    said = refusal(StoreUnavailableError("why", retry_after_s=given_s))

    assert dict(said.headers)[b"retry-after"] == said_s


def test_a_fault_of_the_request_is_not_to_be_repeated() -> None:
    said = refusal(InvalidInputError("why"))

    assert b"retry-after" not in dict(said.headers)
    assert _read(said).retryable is False


def test_a_missing_key_is_told_how_to_send_one() -> None:
    assert dict(refusal(UnauthorizedError("why")).headers)[b"www-authenticate"] == b'Bearer realm="penstock"'
