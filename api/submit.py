"""From a request to a job: the options, the input at its model's door, the id, the deadline."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any
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
from jobs.ids import TaskIds
from jobs.payload import Payload
from jobs.records import SCHEMA, Head, Job, Lane

JSON = "application/json"
ATTEMPTS_MAX = "retry.attempts_max"
"""The one option that lies deeper, as a query parameter."""


class RetryOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a job may be tried: from 1 to what its model allows."""

    attempts_max: int | None = None


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be said of a job besides its input. Raw bodies carry these as query parameters."""

    version: int | None = None
    ttl_s: float | None = None
    lane: Lane = "interactive"
    retry: RetryOptions = RetryOptions()


class Submit(Options, frozen=True, forbid_unknown_fields=True):
    """The JSON body of ``POST /predict/{model}``; ``input`` takes the form that the model's kind asks for."""

    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class SubmitTo(Submit, frozen=True, forbid_unknown_fields=True):
    """The JSON body of ``POST /predict``."""

    model: str | msgspec.UnsetType = msgspec.UNSET


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a submit: the job is stored, and will end."""

    task_id: str
    status: str
    model: str
    version: int
    queued_at: str
    deadline_at: str
    links: dict[str, str]


_decode_submit = msgspec.json.Decoder(Submit).decode
_decode_submit_to = msgspec.json.Decoder(SubmitTo).decode
_TEXT_MAX = 200
_AT = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]*)`")


class Desk:
    """Makes jobs of requests; knows the models and the ids, and nothing of the store."""

    def __init__(self, catalog: Catalog, ids: TaskIds, clock: StoreClock) -> None:
        self._catalog = catalog
        self._ids = ids
        self._clock = clock

    def job(self, request: Request, caller: Caller, model: str | None, body: bytes) -> Job:
        """The job that a request asks for; ``model`` is None where the body names it.

        MalformedError, InvalidInputError, ModelNotFoundError, ModelLoadingError, PayloadTooLargeError,
        UnsupportedMediaTypeError.
        """
        if request.media_type == JSON:
            submit = _decode(body, named=model is not None)
            offer = self._catalog.offer(_model_of(submit) if model is None else model, submit.version)
            payload = offer.kind.from_json(_input_of(submit))
            return self._job(request, caller, offer, submit, payload)
        if model is None:
            raise UnsupportedMediaTypeError(f"POST /predict takes {JSON}; send raw input to /predict/{{model}}.")
        options = _from_query(request.query)
        offer = self._catalog.offer(model, options.version)
        payload = offer.kind.from_bytes(request.media_type, body)
        return self._job(request, caller, offer, options, payload)

    def _job(self, request: Request, caller: Caller, offer: Offer, options: Options, payload: Payload) -> Job:
        record = offer.record
        config = record.config
        now_ms, ttl_ms = self._clock.now_ms(), _ttl_ms(options, offer)
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
        )
        task_id = self._ids.issue(now_ms, caller.tenant_bytes)
        return Job.of(task_id, head, config.pool, payload.data)


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


def _ttl_ms(options: Options, offer: Offer) -> int:
    limits = offer.record.config.limits
    if options.ttl_s is None:
        return int(limits.ttl_s_default * 1000)
    if not 0 < options.ttl_s <= limits.ttl_s_max:
        raise InvalidInputError(f"ttl_s must be above 0 and at most {limits.ttl_s_max:g}.", pointer="/ttl_s")
    return max(1, int(options.ttl_s * 1000))
