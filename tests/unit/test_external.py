"""External data is found wherever a graph may name it, in any bytes, and never outside the version's folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import inference.external
from inference.external import HOLDERS, check_external, locations
from inference.files import digests
from inference.trial import trial
from jobs.errors import SetupError
from jobs.models import ModelConfig
from tests.unit.graphs import doubling, graph

RUNS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def external(location: str, name: str = "w") -> TensorProto:
    """A tensor whose data lies in a file."""
    weight = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    weight.external_data.add(key="offset", value="0")
    return weight


def adding(weight: TensorProto) -> onnx.ModelProto:
    """Build y = x + weight."""
    model = graph([helper.make_node("Add", ["x", "w"], ["y"])], {"x": ["n", 3]}, {"y": ["n", 3]})
    model.graph.initializer.append(weight)
    return model


def written(folder: Path, data: onnx.ModelProto | bytes) -> Path:
    file = folder / "model.onnx"
    file.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
    return file


def body(*tensors: TensorProto) -> Any:
    return helper.make_graph([], "body", [], [], list(tensors))


def everywhere() -> onnx.ModelProto:
    """A model that names another file at each place where a tensor may stand."""
    model = doubling()
    made = model.graph
    made.initializer.append(external("initializer"))
    sparse = made.sparse_initializer.add()
    sparse.values.CopyFrom(external("sparse-values"))
    sparse.indices.CopyFrom(external("sparse-indices"))
    node = made.node.add(op_type="If")
    deep = body(external("nested"))
    deep.node.add().attribute.add(name="g").g.CopyFrom(body(external("nested-deeper")))
    node.attribute.add(name="then").g.CopyFrom(deep)
    node.attribute.add(name="t").t.CopyFrom(external("attribute"))
    node.attribute.add(name="ts").tensors.append(external("attribute-list"))
    node.attribute.add(name="gs").graphs.append(body(external("graph-list")))
    node.attribute.add(name="s").sparse_tensor.values.CopyFrom(external("attribute-sparse"))
    node.attribute.add(name="ss").sparse_tensors.add().indices.CopyFrom(external("attribute-sparse-list"))
    function = model.functions.add(name="f")
    function.node.add().attribute.add(name="t").t.CopyFrom(external("function"))
    function.attribute_proto.add(name="d").t.CopyFrom(external("function-default"))
    training = model.training_info.add()
    training.initialization.CopyFrom(body(external("training")))
    training.algorithm.CopyFrom(body(external("training-algorithm")))
    return model


EVERYWHERE = sorted(
    [
        *("initializer", "sparse-values", "sparse-indices", "nested", "nested-deeper", "attribute", "attribute-list"),
        *("graph-list", "attribute-sparse", "attribute-sparse-list", "function", "function-default"),
        *("training", "training-algorithm"),
    ]
)


def test_every_field_of_onnx_that_leads_to_a_tensor_is_entered() -> None:
    """The table against the descriptors of the package `onnx`, which knows the format from its own source."""
    descriptors: dict[str, Any] = {}

    def collect(descriptor: Any) -> None:
        if descriptor.full_name not in descriptors:
            descriptors[descriptor.full_name] = descriptor
            for field in descriptor.fields:
                if field.message_type is not None:
                    collect(field.message_type)

    collect(onnx.ModelProto.DESCRIPTOR)
    holding = {"onnx.TensorProto"}
    while True:
        more = {
            name
            for name, descriptor in descriptors.items()
            if any(field.message_type and field.message_type.full_name in holding for field in descriptor.fields)
        }
        if more <= holding:
            break
        holding |= more
    short = {"onnx.TrainingInfoProto": "Training", "onnx.SparseTensorProto": "Sparse"}
    names = {name: short.get(name, name.removeprefix("onnx.").removesuffix("Proto")) for name in holding}
    expected = {
        names[name]: {
            field.number: names[field.message_type.full_name]
            for field in descriptors[name].fields
            if field.message_type and field.message_type.full_name in holding
        }
        for name in holding
    }
    assert expected == HOLDERS


def test_locations_are_found_wherever_a_tensor_may_stand(tmp_path: Path) -> None:
    assert locations(written(tmp_path, everywhere())) == EVERYWHERE


def test_a_graph_that_holds_its_weights_names_none(tmp_path: Path) -> None:
    weights = {"w": np.zeros((1_000, 1_000), np.float32)}
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 1_000]}, {"y": ["n", 1_000]}, weights)
    assert locations(written(tmp_path, model)) == []
    assert locations(written(tmp_path, b"")) == []


def test_what_the_package_onnx_writes_as_external_is_found(tmp_path: Path) -> None:
    weights = {"w": np.ones((64, 64), np.float32)}
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, {"y": ["n", 64]}, weights)
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert locations(tmp_path / "model.onnx") == ["w.bin"]
    check_external(tmp_path, "model.onnx", digests(tmp_path, tmp_path))


def test_entries_that_nothing_calls_external_do_not_count(tmp_path: Path) -> None:
    weight = external("left-over")
    weight.data_location = TensorProto.DEFAULT
    weight.raw_data = bytes(12)
    assert locations(written(tmp_path, adding(weight))) == []


def test_a_tensor_in_two_parts_which_readers_merge_hides_nothing(tmp_path: Path) -> None:
    """Protobuf merges a field that occurs twice: the first part names the place, the second says that it counts."""
    place, counts = external("hidden"), TensorProto(data_location=TensorProto.EXTERNAL)
    place.ClearField("data_location")
    parts = [each.SerializeToString() for each in (place, counts)]
    attribute = b"".join(b"\x2a" + _varint(len(part)) + part for part in parts)
    node = b"\x2a" + _varint(len(attribute)) + attribute
    made = b"\x0a" + _varint(len(node)) + node
    data = b"\x3a" + _varint(len(made)) + made
    assert locations(written(tmp_path, data)) == ["hidden"]
    read = onnx.ModelProto.FromString(data).graph.node[-1].attribute[0].t
    assert (read.data_location, read.external_data[0].value) == (TensorProto.EXTERNAL, "hidden")


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("/etc/passwd", "at /.../'passwd' leaves the version's folder"),
        ("../../secret", "leaves the version's folder"),
        ("sub/../../secret", "leaves the version's folder"),
        ("../labels.txt", "leaves the version's folder"),
        ("link", "a link that leaves the models folder"),
        ("none.bin", "'none.bin': no such file"),
        ("", "no such file"),
        ("sub", "no such file"),
        (".hidden", "names that begin with . or _ are passed over"),
        ("*/_ORT_MEM_ADDR_/*", "passed over"),
        ("w.bin\0.txt", "'w.bin\\x00.txt': no such file"),
        ("caf\u00e9\n", "'caf\\xe9\\n': no such file"),
    ],
)
def test_external_data_that_is_not_the_versions_own_is_refused(tmp_path: Path, location: str, says: str) -> None:
    folder = tmp_path / "toy" / "1"
    (folder / "sub").mkdir(parents=True)
    for name in ("w.bin", ".hidden", "../labels.txt", "../../secret"):
        (folder / name).write_bytes(bytes(12))
    files = digests(folder, tmp_path)
    (folder / "link").symlink_to("../labels.txt")
    written(folder, adding(external(location)))
    with pytest.raises(SetupError) as caught:
        check_external(folder, "model.onnx", {**files, "link": ""})
    assert says in str(caught.value)


@pytest.mark.parametrize("location", ["w.bin", "./w.bin", "sub/w.bin"])
def test_external_data_of_the_version_itself_runs(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "toy" / "1"
    (folder / "sub").mkdir(parents=True)
    for name in ("w.bin", "sub/w.bin"):
        (folder / name).write_bytes(np.ones(3, np.float32).tobytes())
    written(folder, adding(external(location)))
    record = trial(folder, ModelConfig(), 60)
    assert (record.state, record.reason) == ("ready", "")
    assert set(record.files) == {"model.onnx", "w.bin", "sub/w.bin"}


# --- Bytes in bad faith ---

WHOLE = everywhere().SerializeToString()


@RUNS
@given(end=st.integers(0, len(WHOLE) - 1))
def test_a_truncated_graph_is_refused_exactly_where_protobuf_refuses_it(tmp_path: Path, end: int) -> None:
    file = written(tmp_path, WHOLE[:end])
    if _parses(WHOLE[:end]):
        assert set(locations(file)) <= set(EVERYWHERE)
    else:
        with pytest.raises(SetupError, match=r"not an ONNX graph \(it ends early\)"):
            locations(file)


@RUNS
@given(data=st.binary(max_size=400))
def test_any_bytes_end_in_names_or_in_an_error(tmp_path: Path, data: bytes) -> None:
    _same_as_protobuf(tmp_path, data)


@RUNS
@given(
    at=st.integers(0, len(WHOLE) - 1),
    patch=st.binary(min_size=1, max_size=4),
    cut=st.integers(0, 4),
)
def test_what_protobuf_reads_in_a_damaged_graph_we_read_too(tmp_path: Path, at: int, patch: bytes, cut: int) -> None:
    _same_as_protobuf(tmp_path, WHOLE[:at] + patch + WHOLE[at + cut :])


def _same_as_protobuf(folder: Path, data: bytes) -> None:
    """Refused, or at least every location that protobuf sees."""
    try:
        found = locations(written(folder, data))
    except SetupError:
        return
    if _parses(data):
        assert _seen(onnx.ModelProto.FromString(data)) <= set(found)


def _seen(message: Any) -> set[str]:
    """The locations of external tensors in what protobuf read."""
    found = set()
    if isinstance(message, TensorProto) and message.data_location == TensorProto.EXTERNAL:
        found = {each.value for each in message.external_data if each.key == "location"}
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                found |= _seen(each)
    return found


def _parses(data: bytes) -> bool:
    try:
        onnx.ModelProto.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own, which differs by its implementation
        return False
    return True


def _nested(depth: int) -> bytes:
    """Graphs within graphs."""
    data = b""
    for _ in range(depth):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g, node.attribute, graph.node
            data = tag + _varint(len(data)) + data
    return b"\x3a" + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x3a\xff\xff\xff\xff\x7f", "it ends early"),
        (b"\x3a" + b"\xff" * 11, "a number without end"),
        (b"\x3b\x3c", "a wire type that ONNX does not use"),
        (b"\x00\x00", "a field that cannot be"),
        (b"\xba\x80\x80\x80\x80\x01\x00", "a field that cannot be"),
        (b"\x3a\x05\x08", "it ends early"),
        (_nested(1_000), "nested too deeply"),
        (b"\x3a" + _varint(400_000) + b"\x0a\x00" * 200_000, "more than 100000 fields"),
    ],
)
def test_hostile_bytes_are_refused_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, says: str
) -> None:
    monkeypatch.setattr(inference.external, "FIELDS_MAX", 100_000)
    started_s = time.process_time()
    with pytest.raises(SetupError, match=says):
        locations(written(tmp_path, data))
    assert time.process_time() - started_s < 2


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda model: [model.graph.initializer.append(external(str(i))) for i in range(1_001)], "more than 1000"),
        (lambda model: model.graph.initializer.append(external("x" * 2_000)), "more than 1024 bytes"),
    ],
)
def test_places_without_number_or_end_are_refused(
    tmp_path: Path, spoil: Callable[[onnx.ModelProto], object], says: str
) -> None:
    model = doubling()
    spoil(model)
    with pytest.raises(SetupError, match=says):
        locations(written(tmp_path, model))
