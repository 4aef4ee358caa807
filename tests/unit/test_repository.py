"""The models folder: what is served, and what is refused with file, key and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.repository import read_config, scan, stamps
from jobs.errors import SetupError
from jobs.models import InferenceConfig, Limits, ModelConfig, StageConfig


def put(models: Path, name: str = "toy", version: str = "1", toml: str | bytes | None = None) -> Path:
    """A version's folder with a graph of junk, and the model's ``model.toml``."""
    folder = models / name / version
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"junk")
    if toml is not None:
        (models / name / "model.toml").write_bytes(toml if isinstance(toml, bytes) else toml.encode())
    return folder


def refusal(models: Path) -> str:
    """What the only fault of the folder says."""
    found = scan(models)
    (fault,) = found.faults.values()
    assert not found.versions
    text = str(fault)
    assert "\n" not in text.strip()
    return text


def test_versions_are_found_in_order_of_name_and_number(tmp_path: Path) -> None:
    for name, version in (("b", "10"), ("b", "9"), ("a.b_c-1", "2147483647")):
        put(tmp_path, name, version)
    assert [each[:3] for each in scan(tmp_path).versions] == [
        ("a.b_c-1", 2_147_483_647, tmp_path / "a.b_c-1" / "2147483647"),
        ("b", 9, tmp_path / "b" / "9"),
        ("b", 10, tmp_path / "b" / "10"),
    ]


def test_files_hidden_folders_and_folders_beside_versions_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path)
    for folder in (".git", "__pycache__", "toy/samples", "toy/.cache"):
        (tmp_path / folder).mkdir()
    (tmp_path / "README.md").touch()
    (tmp_path / "toy" / "2").touch()
    assert [each[:2] for each in scan(tmp_path).versions] == [("toy", 1)]


def test_a_model_of_no_version_yet_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path)
    script = tmp_path / "later" / "export.py"
    script.parent.mkdir()
    script.touch()
    (script.parent / "model.toml").write_text('preprocess = {kind = "text"}')
    (script.parent / ".export-1" / "1").mkdir(parents=True)
    assert [each[:2] for each in scan(tmp_path).versions] == [("toy", 1)]


def test_a_model_without_model_toml_has_the_defaults(tmp_path: Path) -> None:
    put(tmp_path)
    assert scan(tmp_path).versions[0].config == ModelConfig()


def test_model_toml_is_read_with_all_its_parts(tmp_path: Path) -> None:
    toml = """
        description = "d"
        pool = "gpu"
        preprocess = {kind = "image", options = {resize = [8, 8]}}
        inference = {batch_max = 8}
        limits = {rows_max = 2, ttl_s_default = 5}
    """
    put(tmp_path, toml=toml)
    assert scan(tmp_path).versions[0].config == ModelConfig(
        description="d",
        pool="gpu",
        preprocess=StageConfig("image", {"resize": [8, 8]}),
        inference=InferenceConfig(batch_max=8),
        limits=Limits(rows_max=2, ttl_s_default=5),
    )


def test_a_versions_own_model_toml_wins(tmp_path: Path) -> None:
    folder = put(tmp_path, toml='description = "all"')
    assert read_config(folder).description == "all"
    (folder / "model.toml").write_text('description = "one"')
    assert read_config(folder).description == "one"


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("descripton = 'x'", "Object contains unknown field `descripton`; known keys: description, pool"),
        ("[limits]\nrow_max = 1", "limits: Object contains unknown field `row_max`; known keys: input_bytes_max"),
        ("[inference]\nbatch_max = '8'", "inference.batch_max: Expected `int`, got `str`"),
        ("[inference]\nbatch_max = true", "inference.batch_max: Expected `int`, got `bool`"),
        ("[inference]\nbatch_max = 0", "inference.batch_max: 0 is out of range; use 1 to 65536"),
        ("[inference]\nproviders = ['gpu']", "inference.providers[0]: Invalid enum value 'gpu'"),
        ("[inference]\nproviders = []", "inference.providers: name each provider once, of tensorrt, cuda"),
        ("[inference]\nproviders = ['cuda', 'cuda']", "inference.providers: name each provider once"),
        ("[inference]\nproviders = ['cpu', 'cuda']", "inference.providers: 'cpu' runs every graph"),
        (
            "[inference]\nproviders = ['cpu']\nrequired = 'cuda'",
            "inference.required: 'cuda' is not among inference.providers; add it there",
        ),
        ("[inference]\ngpu_memory_bytes_max = -1", "inference.gpu_memory_bytes_max: -1 is out of range"),
        ("[inference]\ngraph_optimization = 'most'", "inference.graph_optimization: Invalid enum value 'most'"),
        ("[inference]\nbuckets = [8, 4]", "inference.buckets: [8, 4] must be ascending numbers of rows"),
        ("[inference]\nbuckets = [4, 4, 64]", "inference.buckets: [4, 4, 64] must be ascending"),
        ("[inference]\nbuckets = [0, 64]", "inference.buckets: [0, 64] must be ascending numbers of rows, from 1"),
        ("[inference]\nbuckets = [4, 8]", "inference.buckets: the last is 8; make it inference.batch_max, 64"),
        ("[inference.warm_shapes]\nx = [0]", "inference.warm_shapes.x: [0] is out of range"),
        (
            "[inference.warm_shapes]\nx = [100000, 100000]",
            "inference.warm_shapes.x: [100000, 100000] is out of range",
        ),
        ("[limits]\nttl_s_default = nan", "limits.ttl_s_default: nan is out of range"),
        ("[limits]\nttl_s_default = 20\nttl_s_max = 10", "limits.ttl_s_default: 20.0 is out of range; use 1 to 10"),
        ("[retry]\nattempts_max = 0", "retry.attempts_max"),
        ("pool = 'A b'", "pool: 'A b' is not a pool name"),
        ("preprocess = 'image'", "preprocess: Expected `object`, got `str`"),
        ("x = ", "not valid TOML"),
        (b"\xff\xfe", "not UTF-8"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "{a = " * 50_000, "nested too deeply"),
        ("[inference]\nbatch_max = " + "9" * 5_000, "a number is too long"),
        ("pool = 'a'\n" + "a." * 100_000 + "a = 1", "line 2: a key of more than 16 parts"),
        ("[" + "a . 'b' . \"c\"." * 30_000 + "a]", "line 1: a key of more than 16 parts"),
        ("#" * 2_000_000, "larger than 1048576 bytes"),
    ],
)
def test_a_wrong_model_toml_names_file_key_and_remedy(tmp_path: Path, toml: str | bytes, says: str) -> None:
    put(tmp_path, toml=toml)
    text = refusal(tmp_path)
    assert text.startswith(f"{tmp_path}/toy/model.toml: ")
    assert says in text


@pytest.mark.parametrize("name", ["Toy", "-toy", "to y", "t\u043ey", "toy~", "x" * 64, "a\nb"])
def test_a_name_that_could_not_be_served_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    (fault,) = scan(tmp_path).faults.values()
    assert "not a model name; use 1 to 63" in str(fault)


@pytest.mark.parametrize("version", ["0", "01", "2147483648", "9" * 30, "²", "\u0661"])
def test_a_version_is_a_plain_positive_number(tmp_path: Path, version: str) -> None:
    put(tmp_path, version=version)
    assert "not a version; use a whole number from 1" in refusal(tmp_path)


def test_a_version_without_a_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "toy" / "1").mkdir(parents=True)
    assert "model.onnx: no such file" in refusal(tmp_path)


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    for look in (scan, stamps):
        with pytest.raises(SetupError, match="no such folder; create it or set PENSTOCK_MODELS"):
            look(tmp_path / "none")


def test_what_is_wrong_in_one_place_hides_no_other(tmp_path: Path) -> None:
    put(tmp_path, "good")
    put(tmp_path, "bad", toml="x = ")
    put(tmp_path, "good", "00")
    put(tmp_path, "Worse")
    found = scan(tmp_path)
    assert [each[:2] for each in found.versions] == [("good", 1)]
    assert sorted(found.faults) == ["Worse", "bad/1", "good/00"]
    assert set(stamps(tmp_path)) == {"Worse", "bad/1", "good/00", "good/1"}


@pytest.mark.parametrize("link", ["toy", "toy/1", "toy/1/model.onnx"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, link: str) -> None:
    outside = put(tmp_path / "outside").parents[1]
    models = tmp_path / "models"
    (models / link).parent.mkdir(parents=True)
    (models / link).symlink_to(outside / link)
    assert "a link that leaves the models folder" in refusal(models)


def test_a_link_inside_the_folder_and_a_linked_folder_itself_are_followed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    put(models)
    (models / "toy" / "2").symlink_to("1")
    (tmp_path / "link").symlink_to(models)
    assert [each.version for each in scan(tmp_path / "link").versions] == [1, 2]
