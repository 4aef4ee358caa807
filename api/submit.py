"""From a request to a job: the options, the input at its model's door, the id, the deadline."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import parse_qsl

import msgspec

from api.access import Caller
from api.catalog import Catalog, Offer
from api.clock import StoreClock
from api.http import Request
from jobs.errors import (
    InvalidInputError,
    MalformedError,
    ModelNotFoundError,
    UnsupportedMediaTypeError,
)
from jobs.estimates import Estimate
from jobs.idempotency import Answer, idempotency, read_key
from jobs.ids import TaskIds
from jobs.payload import Payload
from jobs.records import SCHEMA, CacheTerms, Head, Idempotency, Job, Lane, line_of

JSON = "application/json"
ATTEMPTS_MAX = "retry.attempts_max"
"""The one option that lies deeper, as a query parameter."""


CacheOption = Literal["use", "refresh", "off"]


class RetryOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a job may be tried: from 1 to what its model allows."""

    attempts_max: int | None = None


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be said of a job besides its input. Raw bodies carry these as query parameters."""

    version: int | None = None
    ttl_s: float | None = None
    lane: Lane = "interactive"
    cache: CacheOption = "use"
    admit: Literal["deadline", "always"] = "deadline"
    retry: RetryOptions = RetryOptions()


class Submit(Options, frozen=True, forbid_unknown_fields=True):
    """The JSON body of ``POST /predict/{model}``; ``input`` takes the form that the model's kind asks for."""

    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class SubmitTo(Submit, frozen=True, forbid_unknown_fields=True):
    """The JSON body of ``POST /predict``."""

    model: str | msgspec.UnsetType = msgspec.UNSET


class Order(msgspec.Struct, frozen=True):
    """What a request asks for, with its input not yet looked at: a cheap refusal needs no more."""

    options: Options
    offer: Offer
    line: str
    ttl_s: float
    cached: bool
    """Whether the result cache has a part in it."""
    media_type: str
    input: msgspec.Raw | bytes


_decode_submit = msgspec.json.Decoder(Submit).decode
_decode_submit_to = msgspec.json.Decoder(SubmitTo).decode
_TEXT_MAX = 200
_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`")


class Desk:
    """Makes jobs of requests; knows the models and the ids, and nothing of the store."""

    def __init__(self, catalog: Catalog, ids: TaskIds, clock: StoreClock, *, caches: bool = True) -> None:
        self._caches = caches
        self._catalog = catalog
        self._ids = ids
        self._clock = clock

    def order(self, request: Request, model: str | None, body: bytes) -> Order:
        """What a request asks for; ``model`` is None where the body names it.

        MalformedError, InvalidInputError, ModelNotFoundError, ModelLoadingError, UnsupportedMediaTypeError.
        """
        if request.media_type == JSON:
            submit = _decode(body, named=model is not None)
            offer = self._catalog.offer(_model_of(submit) if model is None else model, submit.version)
            return self._order(request, submit, offer, _input_of(submit))
        if model is None:
            raise UnsupportedMediaTypeError(f"POST /predict takes {JSON}; send raw input to /predict/{{model}}.")
        options = _from_query(request.query)
        return self._order(request, options, self._catalog.offer(model, options.version), body)

    def job(
        self, order: Order, request: Request, caller: Caller, body: bytes, estimate: Estimate | None = None
    ) -> Job:
        """The job of an order.

        InvalidInputError, PayloadTooLargeError, UnsupportedMediaTypeError, IdempotencyKeyError.
        """
        record, payload, options = order.offer.record, _payload(order), order.options
        config = record.config
        now_ms, ttl_ms = self._clock.now_ms(), max(1, int(order.ttl_s * 1000))
        head = Head(
            schema=SCHEMA,
            tenant=caller.tenant,
            model=record.name,
            version=record.version,
            lane=options.lane,
            queued_at_ms=now_ms,
            deadline_at_ms=now_ms + ttl_ms,
            attempts_max=_attempts_max(options, config.retry.attempts_max),
            media_type=payload.media_type,
            input_sha256=sha256(payload.data).digest(),
            request_id=request.request_id,
            traceparent=request.traceparent,
            estimate=estimate.told() if estimate else None,
            cached=order.cached,
        )
        task_id = self._ids.issue(now_ms, caller.tenant_bytes)
        return Job(
            *(task_id, head, order.line, payload.data, config.weight),
            idempotency=_idempotency(request, body, task_id, head),
            cache=_cache_terms(order, request, head) if order.cached else None,
        )

    def _order(self, request: Request, options: Options, offer: Offer, given: msgspec.Raw | bytes) -> Order:
        record = offer.record
        wanted = options.cache != "off" and b"no-store" not in request.cache_control
        return Order(
            options,
            offer,
            line_of(record.config.pool, options.lane, record.name, record.version),
            _ttl_s(options, offer),
            self._caches and wanted and record.config.cache.ttl_s > 0,
            request.media_type,
            given,
        )


def _payload(order: Order) -> Payload:
    if isinstance(order.input, msgspec.Raw):
        return order.offer.kind.from_json(order.input)
    return order.offer.kind.from_bytes(order.media_type, order.input)


def _cache_terms(order: Order, request: Request, head: Head) -> CacheTerms:
    """Tenant, version and input decide the key; the input's digest covers names, dtypes, shapes and bytes."""
    key = sha256(order.offer.fingerprint + head.input_sha256)
    key.update(f"{head.tenant}\n{head.model}\n{head.version}\n{head.media_type}".encode())
    refresh = order.options.cache == "refresh" or b"no-cache" in request.cache_control
    return CacheTerms(key.digest(), int(order.offer.record.config.cache.ttl_s * 1000), refresh)


def _idempotency(request: Request, body: bytes, task_id: str, head: Head) -> Idempotency | None:
    header = request.idempotency_key
    if header is None:
        return None
    answer = Answer(task_id, head.model, head.version, head.queued_at_ms, head.deadline_at_ms)
    about = (request.path.encode(), request.query, request.media_type.encode(), body)
    return idempotency(read_key(header), head.tenant, about, answer)


def _decode(body: bytes, *, named: bool) -> Submit:
    try:
        return _decode_submit(body) if named else _decode_submit_to(body)
    except msgspec.ValidationError as error:
        raise invalid(error, "body", Submit if named else SubmitTo) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedError("The body is not valid JSON in UTF-8.") from None


def _from_query(query: bytes) -> Options:
    try:
        fields: dict[str, Any] = dict(
            parse_qsl(query.decode(), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=20)
        )
        if ATTEMPTS_MAX in fields:
            fields["retry"] = {"attempts_max": fields.pop(ATTEMPTS_MAX)}
        return msgspec.convert(fields, Options, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error, "query", Options) from None
    except ValueError:
        raise MalformedError("The query string cannot be read.") from None


def invalid(error: msgspec.ValidationError, where: str, form: type[msgspec.Struct]) -> InvalidInputError:
    """A validation error of msgspec as ours: what was wrong, with a JSON pointer to it."""
    text = str(error)  # of any length: it may repeat a value that was sent
    at = _AT.search(text)
    path = at["path"] if at else ""
    unknown = _UNKNOWN.search(text)
    pointer = re.sub(r"\.|\[(\d+)\]", r"/\1", path)
    if unknown:
        names = [field.name for field in msgspec.structs.fields(form)]
        allowed = ", ".join(ATTEMPTS_MAX if name == "retry" and where == "query" else name for name in names)
        text = f"The {where} has the unknown field {unknown['name'][:64]!r}; known are {allowed}"
        pointer += "/" + unknown["name"].replace("~", "~0").replace("/", "~1")
    else:
        text = text[: at.start() if at else None][:_TEXT_MAX]
    return InvalidInputError(f"{text}.", pointer=pointer)


def _model_of(submit: Submit) -> str:
    model = getattr(submit, "model", msgspec.UNSET)
    if not isinstance(model, str):
        raise InvalidInputError("The body names no model.", pointer="/model")
    if not model:
        raise ModelNotFoundError("The model's name is empty.")
    return model


def _input_of(submit: Submit) -> msgspec.Raw:
    if isinstance(submit.input, msgspec.UnsetType):
        raise InvalidInputError("The body has no input.", pointer="/input")
    return submit.input


def _attempts_max(options: Options, most: int) -> int:
    wanted = options.retry.attempts_max
    if wanted is None:
        return most
    if not 1 <= wanted <= most:
        raise InvalidInputError(f"retry.attempts_max must be from 1 to {most}.", pointer="/retry/attempts_max")
    return wanted


def _ttl_s(options: Options, offer: Offer) -> float:
    limits = offer.record.config.limits
    if options.ttl_s is None:
        return limits.ttl_s_default
    if not 0 < options.ttl_s <= limits.ttl_s_max:
        raise InvalidInputError(f"ttl_s must be above 0 and at most {limits.ttl_s_max:g}.", pointer="/ttl_s")
    return options.ttl_s
