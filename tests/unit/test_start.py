"""A worker's start: what cannot run on this machine ends it with one line, and what runs says where."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from inference.engine import Engine
from inference.session import Session
from jobs.errors import ModelUnavailableError, SetupError
from jobs.models import InferenceConfig, ModelConfig, ModelRecord
from tasks.worker import _warm
from tests.unit.graphs import doubling, place, placed_record


def placed(models: Path, inference: InferenceConfig | None = None) -> ModelRecord:
    folder = place(models, doubling())
    signature = Session.open(folder / "model.onnx", threads=1).signature
    return placed_record(folder, signature, ModelConfig(inference=inference or InferenceConfig()))


def test_a_required_provider_that_is_absent_stops_it_with_the_reason(tmp_path: Path) -> None:
    record = placed(tmp_path, InferenceConfig(providers=("openvino",), required="openvino"))
    with pytest.raises(SetupError, match=r"version 1 of toy: inference\.required: .* has no OpenVINO"):
        _warm(Engine(tmp_path, 1), record)


def test_a_file_that_is_gone_may_be_back_at_the_next_start(tmp_path: Path) -> None:
    record = placed(tmp_path)
    (tmp_path / "toy" / "1" / "model.onnx").unlink()
    with pytest.raises(ModelUnavailableError):
        _warm(Engine(tmp_path, 1), record)


def test_its_metrics_say_where_a_version_runs(tmp_path: Path) -> None:
    _warm(Engine(tmp_path, 1), placed(tmp_path))
    labels = {"model": "toy", "version": "1"}
    assert REGISTRY.get_sample_value("penstock_model_provider", labels | {"provider": "CPU"}) == 1
    assert REGISTRY.get_sample_value("penstock_model_loaded", labels) == 1
