"""Pictures: every held-out sample gets its label, and large ones pass beside the broker."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.reference import outputs
from tests.system import END_S, ROOT, System
from tests.waiting import wait_until

SAMPLES = sorted((ROOT / "models" / "digits" / "samples").glob("*.png"))
MESSAGE_BYTES_MAX = 4_096


def noise_png(side: int) -> bytes:
    """A valid grey PNG of noise, which does not compress: about a byte a pixel."""
    pixels = np.random.default_rng(2).integers(0, 256, (side, side), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_every_held_out_sample_gets_its_label_as_base64_and_as_raw_bytes(system: System) -> None:
    assert len(SAMPLES) == 12
    submitted = []
    for sample in SAMPLES:
        data, label = sample.read_bytes(), sample.stem[-1]
        raw = system.client.post("/predict/digits", content=data, headers={"Content-Type": "image/png"})
        assert raw.status_code == 202, raw.text
        submitted.append((label, raw.json()["task_id"]))
        submitted.append((label, system.submit("digits", {"base64": base64.b64encode(data).decode()})))
    got = [(label, system.ended(task_id)["result"]["label"]) for label, task_id in submitted]
    assert got == [(label, label) for label, _ in submitted]


def test_a_result_is_what_onnx_runtime_says_of_the_pixels(system: System) -> None:
    image = Image.open(SAMPLES[3]).convert("L").resize((8, 8), Image.Resampling.BOX)
    row = ((255 - np.asarray(image, np.float32).reshape(1, 64)) / 240).astype(np.float32)
    powers = np.exp(outputs(row, "digits")[0].astype(np.float64))
    encoded = base64.b64encode(SAMPLES[3].read_bytes()).decode()
    result = system.ended(system.submit("digits", {"base64": encoded}))["result"]
    assert result["label"] == str(powers.argmax())
    assert result["score"] == pytest.approx(powers.max() / powers.sum(), abs=1e-4)
    assert [each["label"] for each in result["top"]] == [str(n) for n in powers.argsort()[::-1][:3]]


def test_a_large_picture_passes_beside_the_broker(system: System) -> None:
    data = noise_png(1024)
    assert len(data) > 1_000_000
    system.stop_workers()
    raw = system.client.post("/predict/digits", content=data, headers={"Content-Type": "image/png"})
    as_json = system.submit("digits", {"base64": base64.b64encode(data).decode()})
    wait_until(lambda: system.waiting_messages() >= 1, END_S, "a message is published")
    messages = system.take_messages()  # lost: the sweeper publishes again
    system.start_roles()

    assert messages
    assert max(message.size_bytes for message in messages) < MESSAGE_BYTES_MAX
    results = [system.ended(task_id)["result"] for task_id in (raw.json()["task_id"], as_json)]
    assert results[0] == results[1]
    assert results[0]["label"] in set("0123456789")
