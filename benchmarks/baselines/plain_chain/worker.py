"""The Celery worker of the plain chain: three tasks, one job a message, as the Celery manual shows it.

celery -A worker worker --concurrency 2
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
from celery import Celery
from celery.signals import worker_process_init

app = Celery(
    "plain_chain",
    broker=os.environ["PLAIN_BROKER_URL"],
    backend=os.environ["PLAIN_RESULT_URL"],
)
app.conf.broker_connection_retry_on_startup = True

sessions: dict[str, onnxruntime.InferenceSession] = {}


@worker_process_init.connect
def load_model(**_signal: object) -> None:
    """One session in each process of the pool, opened after the fork."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions["tensor-demo"] = onnxruntime.InferenceSession(
        os.environ["PLAIN_MODEL"], options, providers=["CPUExecutionProvider"]
    )


@app.task
def preprocess(values: list[float]) -> list[float]:
    """Check the input: 64 finite numbers."""
    array = np.asarray(values, np.float32)
    if array.shape != (64,) or not np.isfinite(array).all():
        raise ValueError("expected 64 finite numbers")
    return values


@app.task
def inference(values: list[float]) -> list[float]:
    """One row through the model."""
    (rows,) = sessions["tensor-demo"].run(["y"], {"x": np.asarray([values], np.float32)})
    outputs: list[float] = rows[0].tolist()
    return outputs


@app.task
def postprocess(outputs: list[float]) -> dict[str, list[float]]:
    """Make the document that the client collects."""
    return {"y": outputs}
