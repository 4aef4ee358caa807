"""Libraries of custom operators: which files may be one, and that they are loaded where that is allowed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from inference.customops import libraries
from inference.engine import Engine
from inference.session import Session
from inference.trial import trial
from jobs.errors import ModelUnavailableError, SetupError
from jobs.models import InferenceConfig, ModelConfig
from tests.unit.graphs import doubling, place, placed_record

SOURCE = """
#include <stdio.h>
void *RegisterCustomOps(void *options, const void *api) {
    fclose(fopen("%s", "w"));
    return 0;
}
"""


def named(*names: str) -> ModelConfig:
    return ModelConfig(inference=InferenceConfig(custom_ops=names))


@pytest.fixture
def loaded(tmp_path: Path) -> Path:
    """The file that the library leaves where it was loaded; the library lies in the folder of the model ``toy``."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    folder, mark = tmp_path / "toy", tmp_path / "loaded"
    folder.mkdir()
    source = tmp_path / "ops.c"
    source.write_text(SOURCE % mark)
    command = [compiler, "-shared", "-fPIC", "-o", str(folder / "libops.so"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return mark


def test_a_library_is_loaded_by_the_trial_and_by_the_engine(tmp_path: Path, loaded: Path) -> None:
    folder = place(tmp_path, doubling())
    config = named("libops.so")
    found = libraries(config, folder, tmp_path, allowed=True)
    assert found == [tmp_path / "toy" / "libops.so"]
    record = trial(folder, config, 60, found)
    assert (record.state, record.reason, loaded.exists()) == ("ready", "", True)
    loaded.unlink()
    (outcome,) = Engine(tmp_path, 1, custom_ops=True).run(record, [{"x": np.ones((1, 3), np.float32)}])
    assert isinstance(outcome, dict)
    assert loaded.exists()


def test_the_engine_asks_again_whether_it_may(tmp_path: Path, loaded: Path) -> None:
    folder = place(tmp_path, doubling())
    signature = Session.open(folder / "model.onnx", threads=1).signature
    record = placed_record(folder, signature, named("libops.so"))
    with pytest.raises(ModelUnavailableError, match="PENSTOCK_CUSTOM_OPS"):
        Engine(tmp_path, 1).warm(record)
    assert not loaded.exists()


def test_a_file_that_is_no_library_is_broken_and_named(tmp_path: Path) -> None:
    folder = place(tmp_path, doubling())
    (folder / "libops.so").write_bytes(b"\x7fELF junk")
    config = named("libops.so")
    record = trial(folder, config, 60, libraries(config, folder, tmp_path, allowed=True))
    assert record.state == "broken"
    assert record.reason == "libops.so: not a library of custom operators that can be loaded"


def test_the_version_s_own_file_wins(tmp_path: Path) -> None:
    folder = place(tmp_path, doubling())
    for each in (folder, folder.parent):
        (each / "libops.so").touch()
    assert libraries(named("libops.so"), folder, tmp_path, allowed=True) == [folder / "libops.so"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/lib/x86_64-linux-gnu/libc.so.6", "is not the name of a .so file"),
        ("../../evil.so", "is not the name of a .so file"),
        ("libc.so.6", "is not the name of a .so file"),
        ("", "is not the name of a .so file"),
        ("libnone.so", "'libnone.so': no such file"),
        (".hidden.so", "no such file"),
        ("link.so", "a link that leaves the models folder"),
    ],
)
def test_what_is_not_a_file_of_the_model_is_refused(tmp_path: Path, name: str, says: str) -> None:
    folder = place(tmp_path / "models", doubling())
    (folder / ".hidden.so").touch()
    if name == "link.so":
        (folder / "link.so").symlink_to(tmp_path / "outside.so")
        (tmp_path / "outside.so").touch()
    with pytest.raises(SetupError) as caught:
        libraries(named(name), folder, tmp_path / "models", allowed=True)
    assert says in str(caught.value)


def test_models_without_libraries_need_no_leave(tmp_path: Path) -> None:
    assert libraries(ModelConfig(), place(tmp_path, doubling()), tmp_path, allowed=False) == []
