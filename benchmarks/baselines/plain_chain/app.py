"""The gateway of the plain chain: submit starts a Celery chain, poll reads its result.

uvicorn app:app
"""

from __future__ import annotations

from typing import Any

from celery import chain
from celery.result import AsyncResult
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from worker import app as celery_app
from worker import inference, postprocess, preprocess

app = FastAPI()


class Job(BaseModel):
    """What a client submits."""

    input: list[float]


@app.post("/predict/{model}", status_code=202)
def submit(model: str, job: Job) -> dict[str, str]:
    """Start the chain."""
    if model != "tensor-demo":
        raise HTTPException(404)
    result = chain(preprocess.s(job.input), inference.s(), postprocess.s()).apply_async()
    return {"task_id": result.id, "status": "queued"}


@app.get("/result/{task_id}")
def poll(task_id: str) -> Any:
    """202 until the last task of the chain has ended."""
    result = AsyncResult(task_id, app=celery_app)
    state = result.state
    if state == "SUCCESS":
        return {"task_id": task_id, "status": "completed", "result": result.result}
    if state == "FAILURE":
        return {"task_id": task_id, "status": "failed", "error": str(result.result)}
    return JSONResponse({"task_id": task_id, "status": "queued"}, status_code=202)
