"""The door: what becomes of a submit, from the body that arrived to the answer.

In this order: what was asked, who is let in, what is known already, and the write. A submit that the store did not
simply write was answered before (its Idempotency-Key), is answered from the result cache, or is over its tenant's
quota.
"""

from __future__ import annotations

import contextlib
import logging
import math

from api.access import Caller
from api.admission import Admission
from api.cache import ResultCache
from api.http import Headers, Request, Send, answer
from api.metrics import Metrics
from api.polls import JSON, Polls, preference_applied
from api.results import accepted, is_terminal, render
from api.submit import Desk, Order
from api.writer import Writer
from jobs.errors import PenstockError, RecordMissingError, ResultGoneError, StoreUnavailableError
from jobs.estimates import Estimate
from jobs.idempotency import Answer, Repeat, repeat_of
from jobs.records import Job, from_cache

log = logging.getLogger(__name__)

_RETRY = (b"retry-after", b"1")
_REPLAYED = (b"idempotent-replayed", b"true")


class Door:
    """One gateway's."""

    def __init__(  # noqa: PLR0917 - what a submit goes through
        self,
        desk: Desk,
        admission: Admission,
        results: ResultCache,
        polls: Polls,
        writer: Writer,
        metrics: Metrics,
        wait_s_max: float,
    ) -> None:
        self._desk = desk
        self._admission = admission
        self._results = results
        self._polls = polls
        self._writer = writer
        self._metrics = metrics
        self._wait_s_max = wait_s_max

    async def submit(self, request: Request, caller: Caller, model: str | None, body: bytes, send: Send) -> None:
        """Answer a submit whose body is there; ``model`` is None where the body names it.

        202; 200 where it ended within the wait, or its result is known already. Any PenstockError of the door.
        """
        order = self._desk.order(request, model, body)
        estimate, refusal = self._judge(caller, order)
        if refusal is not None and not self._may_know(order, request):
            raise refusal
        job = self._desk.job(order, request, caller, body, estimate)
        known = self._recall(job)
        if known is not None:
            await self._answer_cached(request, *known, send)
            return
        if refusal is not None:
            await self._answer_before(request, job, refusal, send)
            return
        note = await self._writer.write(job)
        if note is None or note.verdict == "joined":
            if log.isEnabledFor(logging.DEBUG):
                log.debug("accepted", extra={"task_id": job.task_id, "request_id": request.request_id})
            await self._answer_stored(request, _answer_of(job), self._rate_fields(caller.tenant), send)
        elif note.verdict == "hit" and job.cache:
            self._results.put(job.cache.key, note.document, note.age_ms, job.cache.fresh_ms)
            await self._answer_cached(request, note.document, note.age_ms, send)
        elif note.verdict == "replayed" and job.idempotency:
            await self._answer_again(request, repeat_of(job.idempotency, note.kept), send)
        else:
            over_quota = self._admission.refusal(caller.tenant, note)
            over_quota.fields = self._rate_fields(caller.tenant)
            raise over_quota

    def _judge(self, caller: Caller, order: Order) -> tuple[Estimate | None, PenstockError | None]:
        """The estimate of a job that is let in, or why it is not."""
        always = order.options.admit == "always"
        try:
            return self._admission.judge(caller.tenant, order.line, order.ttl_s, always=always), None
        except PenstockError as error:
            error.fields = self._rate_fields(caller.tenant)
            return None, error

    def _may_know(self, order: Order, request: Request) -> bool:
        """Whether a request that is not let in may have its answer already: a cached one, or that to its key."""
        return request.idempotency_key is not None or (order.cached and len(self._results) > 0)

    def _recall(self, job: Job) -> tuple[bytes, int] | None:
        """A cached result that this gateway knows. With an Idempotency-Key the store must answer."""
        if job.cache is None or job.idempotency is not None:
            return None
        if job.cache.refresh:
            self._results.drop(job.cache.key)
            return None
        return self._results.get(job.cache.key)

    async def _answer_before(self, request: Request, job: Job, refusal: PenstockError, send: Send) -> None:
        """Refuse a job that is not let in, unless it was before: then its key is told the same again."""
        kept = await self._writer.kept(job.idempotency.name) if job.idempotency else b""
        if not kept or job.idempotency is None:
            raise refusal
        await self._answer_again(request, repeat_of(job.idempotency, kept), send)

    async def _answer_stored(self, request: Request, told: Answer, fields: Headers, send: Send) -> None:
        """The 202, or how the job stands at its end or when the wait is over."""
        wait_s = request.wait_s(self._wait_s_max)
        if wait_s:  # whatever reading it meets, the job is stored: that is the 202
            with contextlib.suppress(StoreUnavailableError, RecordMissingError, ResultGoneError):
                view = await self._polls.at_end(told.task_id, wait_s)
                await self._polls.answer(request, told.task_id, view, send, [*preference_applied(wait_s), *fields])
                return
        headers = [
            JSON,
            _RETRY,
            (b"location", b"/result/" + told.task_id.encode()),
            (b"x-request-id", request.request_id.encode()),
            *fields,
        ]
        await answer(send, 202, headers, accepted(told))

    async def _answer_cached(self, request: Request, document: bytes, age_ms: int, send: Send) -> None:
        self._metrics.cache_requests.labels("hit").inc()
        headers = [JSON, (b"x-request-id", request.request_id.encode())]
        await answer(send, 200, headers, from_cache(document, "hit", age_ms))

    async def _answer_again(self, request: Request, told: Repeat, send: Send) -> None:
        """What the first request with this Idempotency-Key was told."""
        if told.answer:
            await self._answer_stored(request, told.answer, [_REPLAYED], send)
            return
        view = await self._polls.view(told.task_id)
        if not is_terminal(view):  # it failed then, and is run again
            await self._polls.answer(request, told.task_id, view, send, [_REPLAYED])
            return
        headers = [JSON, _REPLAYED, (b"x-request-id", request.request_id.encode())]
        await answer(send, 200, headers, from_cache(render(told.task_id, view), "hit", 0))

    def _rate_fields(self, tenant: str) -> Headers:
        """RateLimit fields (draft-ietf-httpapi-ratelimit-headers) of a tenant that has a rate."""
        quota = self._admission.quota(tenant)
        if quota is None:
            return []
        left = quota.left
        return [
            (b"ratelimit-policy", f'"jobs";q={quota.burst};w={max(1, math.ceil(quota.window_s))}'.encode()),
            (b"ratelimit", f'"jobs";r={max(0, left.jobs)};t={math.ceil(left.whole_in_ms / 1000)}'.encode()),
        ]


def _answer_of(job: Job) -> Answer:
    head = job.head
    return Answer(job.task_id, head.model, head.version, head.queued_at_ms, head.deadline_at_ms)
