"""From a request to a job: options, the input at its model's door, the deadline; and everything hostile."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, cast

import pytest

from api.access import Caller
from api.catalog import Catalog, Offer, offer_of
from api.clock import StoreClock
from api.http import Request
from api.problems import refusal
from api.submit import Desk
from jobs.errors import (
    IdempotencyKeyError,
    InvalidInputError,
    MalformedError,
    ModelNotFoundError,
    PayloadTooLargeError,
    PenstockError,
    UnsupportedMediaTypeError,
)
from jobs.estimates import Estimate, Told
from jobs.idempotency import Answer, repeat_of
from jobs.ids import KeyRing, TaskIds, issued_at_ms
from jobs.models import (
    CacheConfig,
    InferenceConfig,
    Limits,
    ModelConfig,
    ModelRecord,
    RetryPolicy,
    Signature,
    TensorSpec,
)
from jobs.payload import TENSORS
from jobs.records import Job
from jobs.tensors import unpack_item

NOW_MS = 1_795_000_000_123
CALLER = Caller("acme", b"acme", "user")
CONFIG = ModelConfig(
    pool="gpu",
    limits=Limits(input_bytes_max=4_096, rows_max=4, ttl_s_default=60.0, ttl_s_max=600.0),
    retry=RetryPolicy(attempts_max=5),
)
SIGNATURE = Signature((TensorSpec("x", "float32", (None, 3)),), (TensorSpec("y", "float32", (None, 3)),))
IDS = TaskIds(KeyRing({1: b"k" * 32}), 3600)
OCTETS = "application/octet-stream"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class OneModel:
    """A catalog of ``m``, versions 1 and 2 (active)."""

    def __init__(self, config: ModelConfig = CONFIG) -> None:
        records = [ModelRecord("m", version, "ready", config, "d" * 64, SIGNATURE) for version in (1, 2)]
        self._offers = {record.version: offer_of(record) for record in records}

    def offer(self, model: str, version: int | None) -> Offer:
        chosen = 2 if version is None else version
        if model != "m" or chosen not in self._offers:
            raise ModelNotFoundError(f"There is no {model[:64]!r} {chosen}.")
        return self._offers[chosen]


class Clock(StoreClock):
    def now_ms(self) -> int:
        return NOW_MS


DESK = Desk(cast("Catalog", OneModel()), IDS, Clock())


def _job(
    body: bytes | dict[str, Any],
    model: str | None = "m",
    *,
    media_type: str = "application/json",
    query: str | bytes = "",
    desk: Desk = DESK,
    caller: Caller = CALLER,
    estimate: Estimate | None = None,
    more: Sequence[tuple[bytes, bytes]] = (),
    **headers: str,
) -> Job:
    given = {"content-type": media_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "path": "/predict/m",
        "headers": [*((name.encode(), value.encode("latin-1")) for name, value in given.items()), *more],
        "query_string": query if isinstance(query, bytes) else query.encode(),
    }
    sent = json.dumps(body).encode() if isinstance(body, dict) else body
    request = Request(scope)
    return desk.job(desk.order(request, model, sent), request, caller, sent, estimate)


def _refused(error: type[PenstockError], body: bytes | dict[str, Any], *args: Any, **given: Any) -> PenstockError:
    """The refusal, which is bounded and of exactly this class."""
    with pytest.raises(PenstockError) as refused:
        _job(body, *args, **given)
    assert type(refused.value) is error, refused.value.detail
    assert len(refusal(refused.value, "/predict/" + "x" * 5_000, "r" * 64).body) < 4_096
    return refused.value


def _with(options: str) -> bytes:
    """A body with a good input and these options."""
    return b'{"input": [1, 2, 3], ' + options.encode("utf-8", "surrogatepass") + b"}"


# --- A good request ---


def test_a_request_becomes_a_job() -> None:
    job = _job({"input": [1, 2, 3]}, x_request_id="req-1", traceparent=TRACE)

    head = job.head
    assert (head.tenant, head.model, head.version, head.lane) == ("acme", "m", 2, "interactive")
    assert (head.queued_at_ms, head.deadline_at_ms) == (NOW_MS, NOW_MS + 60_000)
    assert (head.attempts_max, head.media_type) == (5, TENSORS)
    assert (head.request_id, head.traceparent) == ("req-1", TRACE)
    assert head.input_sha256 == sha256(job.data).digest()
    assert job.line == "gpu/interactive/m/2"
    assert unpack_item(job.data)["x"].tolist() == [[1, 2, 3]]
    assert (job.weight, job.idempotency) == (1.0, None)


def test_its_id_is_bound_to_the_tenant_and_the_instant() -> None:
    job = _job({"input": [1, 2, 3]})

    IDS.verify(job.task_id, b"acme")
    assert issued_at_ms(job.task_id) == NOW_MS


def test_options_travel_in_the_json_body() -> None:
    head = _job({"input": [1, 2, 3], "version": 1, "ttl_s": 1.5, "lane": "bulk"}).head

    assert (head.version, head.lane, head.deadline_at_ms) == (1, "bulk", NOW_MS + 1_500)


def test_options_of_a_raw_body_travel_in_the_query() -> None:
    head = _job(bytes(12), media_type=OCTETS, query="version=1&ttl_s=1.5&lane=bulk").head

    assert (head.version, head.lane, head.deadline_at_ms) == (1, "bulk", NOW_MS + 1_500)


def test_a_raw_body_needs_no_options() -> None:
    assert _job(bytes(12), media_type=OCTETS).head.version == 2


def test_null_is_as_good_as_nothing() -> None:
    assert _job({"input": [1, 2, 3], "version": None, "ttl_s": None}).head.deadline_at_ms == NOW_MS + 60_000


def test_the_media_type_of_json_may_have_parameters_and_capitals() -> None:
    assert _job({"input": [1, 2, 3]}, media_type="Application/JSON; charset=utf-8").head.model == "m"


def test_of_a_field_that_stands_twice_the_last_one_counts() -> None:
    assert _job(_with('"version": 1, "version": 2')).head.version == 2
    assert _job(bytes(12), media_type=OCTETS, query="version=1&version=2").head.version == 2


# --- The result cache ---


def _cache_key(body: bytes | dict[str, Any] | None = None, **given: Any) -> bytes:
    job = _job({"input": [1, 2, 3]} if body is None else body, **given)
    assert job.cache is not None
    return job.cache.key


def test_a_job_takes_part_in_the_result_cache_for_as_long_as_its_model_says() -> None:
    job = _job({"input": [1, 2, 3]})

    assert job.head.cached
    assert job.cache is not None
    assert (job.cache.fresh_ms, job.cache.refresh) == (300_000, False)


def test_the_same_input_has_the_same_cache_key_however_it_is_sent() -> None:
    key = _cache_key()

    assert key == _cache_key({"input": [[1.0, 2.0, 3.0]], "ttl_s": 5, "lane": "bulk", "cache": "refresh"})
    assert key == _cache_key(struct.pack("<3f", 1, 2, 3), media_type=OCTETS)
    assert key == _cache_key(idempotency_key="k")


def test_another_input_version_tenant_or_model_has_another_cache_key() -> None:
    configured = ModelConfig(cache=CacheConfig(ttl_s=1), inference=InferenceConfig(batch_max=1))
    keys = {
        _cache_key(),
        _cache_key({"input": [1, 2, 4]}),
        _cache_key({"input": [[1, 2, 3], [1, 2, 3]]}),
        _cache_key({"input": [1, 2, 3], "version": 1}),
        _cache_key(caller=Caller("other", b"other", "user")),
        _cache_key(desk=Desk(cast("Catalog", OneModel(configured)), IDS, Clock())),
    }

    assert len(keys) == 6


@pytest.mark.parametrize("control", ["no-cache", "No-Cache", "max-age=0, no-cache"])
def test_a_result_is_computed_anew_where_that_is_asked_for(control: str) -> None:
    jobs = (_job(_with('"cache": "refresh"')), _job({"input": [1, 2, 3]}, cache_control=control))

    assert all(job.cache and job.cache.refresh and job.head.cached for job in jobs)


@pytest.mark.parametrize("control", ["no-store", "NO-STORE", "no-cache, no-store"])
def test_a_job_has_no_part_in_the_result_cache_where_that_is_asked_for(control: str) -> None:
    jobs = (
        _job(_with('"cache": "off"')),
        _job(bytes(12), media_type=OCTETS, query="cache=off"),
        _job({"input": [1, 2, 3], "cache": "refresh"}, cache_control=control),
    )

    assert not any(job.cache or job.head.cached for job in jobs)


def test_a_model_whose_answers_are_not_kept_has_no_result_cache() -> None:
    desk = Desk(cast("Catalog", OneModel(ModelConfig(cache=CacheConfig(ttl_s=0)))), IDS, Clock())
    job = _job({"input": [1, 2, 3]}, desk=desk)

    assert job.cache is None
    assert not job.head.cached


# --- Idempotency-Key ---


def test_a_key_travels_with_the_answer_that_is_given_now() -> None:
    job = _job({"input": [1, 2, 3]}, idempotency_key='"k"')

    assert job.idempotency is not None
    told = repeat_of(job.idempotency, job.idempotency.kept).answer
    assert told == Answer(job.task_id, "m", 2, NOW_MS, NOW_MS + 60_000)


def test_a_request_without_a_key_has_none() -> None:
    assert _job({"input": [1, 2, 3]}).idempotency is None


@pytest.mark.parametrize("key", ["", '""', "k" * 256, "a b", "\xff"])
def test_what_is_no_key_is_refused(key: str) -> None:
    _refused(IdempotencyKeyError, {"input": [1, 2, 3]}, idempotency_key=key)


def test_two_keys_are_none() -> None:
    _refused(IdempotencyKeyError, {"input": [1, 2, 3]}, more=[(b"idempotency-key", b"a"), (b"idempotency-key", b"a")])


def test_a_request_that_is_refused_for_its_input_is_so_whatever_its_key() -> None:
    _refused(InvalidInputError, {"input": [1]}, idempotency_key="")


# --- The estimate ---


def test_the_estimate_of_the_door_travels_in_whole_milliseconds() -> None:
    told = _job({"input": [1, 2, 3]}, estimate=Estimate(3, 1.0009, 1.2345, 2.9999)).head.estimate

    assert told == Told(size=3, raw_ms=1_000, median_ms=1_234, p90_ms=2_999)
    assert _job({"input": [1, 2, 3]}).head.estimate is None


# --- POST /predict, where the body names the model ---


def test_the_body_may_name_the_model() -> None:
    assert _job({"model": "m", "input": [1, 2, 3]}, None).head.model == "m"


def test_a_body_that_must_name_a_model_and_does_not_is_refused() -> None:
    assert _refused(InvalidInputError, {"input": [1]}, None).pointer == "/model"


@pytest.mark.parametrize("model", [5, None, ["m"], {"m": 1}, True])
def test_a_model_s_name_is_text(model: Any) -> None:
    assert _refused(InvalidInputError, {"model": model, "input": [1]}, None).pointer == "/model"


@pytest.mark.parametrize("model", ["", "x", "../m", "m" * 5_000, "m\0", "\N{GRINNING FACE}" * 2_000, "M"])
def test_an_unknown_model_is_not_found_wherever_it_is_named(model: str) -> None:
    _refused(ModelNotFoundError, {"model": model, "input": [1]}, None)
    _refused(ModelNotFoundError, {"input": [1]}, model)
    _refused(ModelNotFoundError, bytes(12), model, media_type=OCTETS)


def test_a_body_does_not_name_the_model_twice() -> None:
    assert _refused(InvalidInputError, {"model": "m", "input": [1]}, "m").pointer == "/model"


def test_a_raw_body_cannot_name_a_model() -> None:
    _refused(UnsupportedMediaTypeError, bytes(12), None, media_type=OCTETS)


# --- Options that are none ---


def test_a_wrong_value_is_not_repeated_at_length() -> None:
    refused = _refused(InvalidInputError, _with(f'"lane": "{"z" * 100_000}"'))

    assert refused.pointer == "/lane"
    assert refused.detail.count("z") <= 200


def test_an_unknown_field_is_pointed_at_and_the_known_ones_are_named() -> None:
    refused = _refused(InvalidInputError, _with('"ttl": 5'))

    assert refused.pointer == "/ttl"
    assert refused.detail.endswith("known are version, ttl_s, lane, cache, admit, retry, input.")


def test_the_known_fields_are_those_of_the_place() -> None:
    to = _refused(InvalidInputError, {"model": "m", "input": [1], "x": 1}, None)
    query = _refused(InvalidInputError, bytes(12), media_type=OCTETS, query="input=1")

    assert to.detail.endswith("known are version, ttl_s, lane, cache, admit, retry, input, model.")
    assert query.detail.endswith("known are version, ttl_s, lane, cache, admit, retry.attempts_max.")


def test_a_pointer_is_escaped_as_rfc_6901_has_it() -> None:
    assert _refused(InvalidInputError, _with('"a/b~c": 1')).pointer == "/a~1b~0c"


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ('"version": "1"', "/version"),
        ('"version": true', "/version"),
        ('"version": 1.5', "/version"),
        ('"version": [1]', "/version"),
        ('"ttl_s": "5"', "/ttl_s"),
        ('"ttl_s": true', "/ttl_s"),
        ('"ttl_s": {}', "/ttl_s"),
        ('"lane": "express"', "/lane"),
        ('"lane": null', "/lane"),
        ('"lane": 1', "/lane"),
        ('"cache": "yes"', "/cache"),
        ('"cache": null', "/cache"),
        ('"cache": true', "/cache"),
        ('"cache": {}', "/cache"),
        ('"admit": "never"', "/admit"),
        ('"admit": false', "/admit"),
        ('"admit": null', "/admit"),
        ('"retry": 3', "/retry"),
        ('"retry": {"attempts_max": "3"}', "/retry/attempts_max"),
        ('"retry": {"attempts": 3}', "/retry/attempts"),
    ],
)
def test_a_wrong_type_is_pointed_at(options: str, pointer: str) -> None:
    assert _refused(InvalidInputError, _with(options)).pointer == pointer


@pytest.mark.parametrize(
    "query",
    [
        "version=x",
        "version=",
        "version=1.5",
        "ttl_s=",
        "ttl_s=soon",
        "lane=express",
        "lane=",
        "cache=",
        "cache=USE",
        "admit=1",
    ],
)
def test_a_wrong_type_in_the_query_is_pointed_at(query: str) -> None:
    assert (
        _refused(InvalidInputError, bytes(12), media_type=OCTETS, query=query).pointer
        == "/" + query.partition("=")[0]
    )


@pytest.mark.parametrize("version", [0, -1, 3, 2**63, 10**4_000])
def test_an_unknown_version_is_not_found(version: int) -> None:
    _refused(
        ModelNotFoundError,
        b'{"input": [1, 2, 3], "version": 1%s}' % (b"0" * 4_000)
        if version > 2**64
        else {
            "input": [1, 2, 3],
            "version": version,
        },
    )


@pytest.mark.parametrize(("ttl_s", "ttl_ms"), [("600", 600_000), ("0.5", 500), ("1e-9", 1), ("5", 5_000)])
def test_a_ttl_within_bounds_sets_the_deadline(ttl_s: str, ttl_ms: int) -> None:
    assert _job(_with(f'"ttl_s": {ttl_s}')).head.deadline_at_ms == NOW_MS + ttl_ms
    assert _job(bytes(12), media_type=OCTETS, query=f"ttl_s={ttl_s}").head.deadline_at_ms == NOW_MS + ttl_ms


@pytest.mark.parametrize("ttl_s", ["0", "-0.0", "-1", "600.001", "1e18", "1e999", "-1e999"])
def test_a_ttl_out_of_bounds_is_refused(ttl_s: str) -> None:
    assert _refused(InvalidInputError, _with(f'"ttl_s": {ttl_s}')).pointer == "/ttl_s"


@pytest.mark.parametrize("ttl_s", ["nan", "inf", "-inf", "1e999", "0", "-1", "601"])
def test_a_ttl_out_of_bounds_in_the_query_is_refused(ttl_s: str) -> None:
    assert _refused(InvalidInputError, bytes(12), media_type=OCTETS, query=f"ttl_s={ttl_s}").pointer == "/ttl_s"


@pytest.mark.parametrize(
    "query", [b"\xff=1", b"novalue", b"&&&=&", b"&".join(b"a%d=1" % number for number in range(21))]
)
def test_a_query_that_cannot_be_read_is_malformed(query: bytes) -> None:
    _refused(MalformedError, bytes(12), media_type=OCTETS, query=query)


@pytest.mark.parametrize("query", [b"%ff=1", b"%00=1", b"a%0d%0ab=1", b"%ED%A0%80=1", b"x" * 5_000 + b"=1"])
def test_an_odd_field_in_the_query_is_unknown(query: bytes) -> None:
    _refused(InvalidInputError, bytes(12), media_type=OCTETS, query=query)


# --- Bodies that are hostile ---


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b'{"input": [1, 2, 3]',
        b'{"input": [1, 2, 3]} {}',
        b"NaN",
        b'{"input": [NaN, 2, 3]}',
        b'{"input": [Infinity, 2, 3]}',
        b'{"input": [-Infinity, 2, 3]}',
        b'{"input": [1, 2, 3], "ttl_s": NaN}',
        b'{"input": [01, 2, 3]}',
        b"{'input': [1, 2, 3]}",
        b'{"input": [1, 2, 3,]}',
        b'{"input": [1, 2, 3], "lane": "\xff"}',
        b'{"input": [1, 2, 3], "lane": "\\ud800"}',
        b'{"input": [1, 2, 3], "\\ud800": 1}',
        b'{"input": "\\ud800"}',
        '{"input": [1, 2, 3]}'.encode("utf-16"),
        b'\xef\xbb\xbf{"input": [1, 2, 3]}',
        b'{"input": ' + b"[" * 100_000,
        b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"input": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b"[" * 100_000,
        b"\0" * 100,
    ],
    ids=lambda body: ascii(body[:40]),
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises((MalformedError, InvalidInputError)) as refused:
        _job(body)
    if not body.startswith(b"[["):
        assert type(refused.value) is MalformedError
    with pytest.raises((MalformedError, InvalidInputError)):
        _job(body, None)


@pytest.mark.parametrize("body", [b"null", b"[]", b"1", b'"text"', b"true"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    assert _refused(InvalidInputError, body).pointer == ""


@pytest.mark.parametrize(
    "given",
    ["[1e999, 2, 3]", "[1e39, 2, 3]", "[" + "9" * 5_000 + ", 2, 3]", "[true, 2, 3]", '["1", 2, 3]', "[null, 2, 3]"],
    ids=lambda given: given[:20],
)
def test_a_number_that_the_model_cannot_take_is_pointed_at(given: str) -> None:
    assert _refused(InvalidInputError, f'{{"input": {given}}}'.encode()).pointer == "/input/0"


@pytest.mark.parametrize(
    "given", ["null", "1", '"text"', "[]", "[[]]", "[1, 2]", "[[1, 2, 3], [1, 2]]", "{}", "[[[[1]]]]", '"\xff"']
)
def test_an_input_of_another_form_is_refused(given: str) -> None:
    refused = _refused(InvalidInputError, f'{{"input": {given}}}'.encode("latin-1"))

    assert refused.pointer is not None
    assert refused.pointer.startswith("/input")


def test_a_body_without_an_input_is_refused() -> None:
    assert _refused(InvalidInputError, {}).pointer == "/input"


def test_more_rows_than_allowed_are_refused() -> None:
    _refused(InvalidInputError, {"input": [[1, 2, 3]] * 5})
    _refused(InvalidInputError, bytes(12 * 5), media_type=OCTETS)


def test_an_input_larger_than_the_model_takes_is_refused() -> None:
    _refused(PayloadTooLargeError, bytes(4_097), media_type=OCTETS)
    _refused(PayloadTooLargeError, {"input": [1] * 1_100})


def test_the_bound_counts_the_decoded_input_and_not_its_packing() -> None:
    tight = ModelConfig(limits=Limits(input_bytes_max=12))
    desk = Desk(cast("Catalog", OneModel(tight)), IDS, Clock())

    assert _job({"input": [1, 2, 3]}, desk=desk).head.model == "m"
    assert _job(bytes(12), media_type=OCTETS, desk=desk).head.model == "m"
    _refused(PayloadTooLargeError, {"input": [[1, 2, 3]] * 2}, desk=desk)
    _refused(PayloadTooLargeError, bytes(24), media_type=OCTETS, desk=desk)


@pytest.mark.parametrize(
    "media_type", ["image/png", "text/plain", "", "\xff/\xff", "x" * 5_000, "multipart/form-data"]
)
def test_a_media_type_that_the_model_does_not_take_is_refused(media_type: str) -> None:
    _refused(UnsupportedMediaTypeError, bytes(12), media_type=media_type)


def test_a_huge_field_name_is_not_echoed_whole() -> None:
    assert len(_refused(InvalidInputError, _with('"' + "k" * 100_000 + '": 1')).detail) < 300


@pytest.mark.parametrize("text", ["\N{GRINNING FACE}", "\\u0001", "x"])
def test_a_huge_lane_does_not_make_a_huge_answer(text: str) -> None:
    assert _refused(InvalidInputError, _with('"lane": "' + text * 5_000 + '"')).pointer == "/lane"
