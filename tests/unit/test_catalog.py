"""Versions that come, change and go while workers run, on a real store; the trial load alone is played."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import redis

import tasks.catalog
from inference.files import digest_of, digests
from jobs.connect import redis_client
from jobs.errors import ModelUnavailableError, SetupError
from jobs.models import ModelConfig, ModelRecord, Signature, TensorSpec
from tasks.catalog import Catalog, Served
from tasks.published import Published
from tests.servers import RedisServer

SPEC = TensorSpec("x", "float32", (None, 2))
GOOD, BETTER, BAD = b"good", b"better", b"bad"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis") / "server").start() as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis_client(server.url, 5.0) as client:
        client.flushall()
        yield client


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The graphs that were tried; those called bad are broken."""
    graphs: list[bytes] = []

    def trial(folder: Path, config: ModelConfig, *_: object) -> ModelRecord:
        graph = (folder / "model.onnx").read_bytes()
        graphs.append(graph)
        files = digests(folder, folder.parents[1])
        state, reason = ("broken", "bad") if graph == BAD else ("ready", "")
        name, version = folder.parent.name, int(folder.name)
        record = ModelRecord(name, version, "ready", config, files["model.onnx"], Signature((SPEC,), (SPEC,)))
        return msgspec.structs.replace(record, state=state, reason=reason, files=files, files_digest=digest_of(files))

    monkeypatch.setattr(tasks.catalog, "trial", trial)
    return graphs


class Worker:
    """A worker's catalog with a folder, its own or another worker's."""

    def __init__(
        self,
        client: redis.Redis,
        folder: Path,
        name: str,
        *,
        pools: tuple[str, ...] = ("default",),
        hold_s: float = 60,
        custom_ops: bool = False,
    ) -> None:
        self.folder = folder
        self.client = client
        self.catalog = Catalog(client, "t", folder, pools, holder=name, hold_s=hold_s, custom_ops=custom_ops)

    def put(self, graph: bytes, version: int = 1, labels: bytes = b"") -> None:
        folder = self.folder / "toy" / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {"model.onnx": graph, **({"labels.txt": labels} if labels else {})}.items():
            (folder / "_new").write_bytes(content)
            (folder / "_new").rename(folder / name)

    def remove(self, version: int = 1) -> None:
        shutil.rmtree(self.folder / "toy" / str(version))

    def start(self) -> Worker:
        self.catalog.publish()
        return self

    def polls(self, times: int = 2) -> None:
        for _ in range(times):
            self.catalog.refresh()

    def graph(self, version: int = 1) -> str:
        """The digest of the graph that jobs of a version would meet here; "" where there is none."""
        try:
            return self.catalog.served("toy", version).record.digest
        except ModelUnavailableError:
            return ""

    def record(self, place: str = "toy/1") -> ModelRecord | None:
        """What the store says."""
        raw = cast("bytes | None", self.client.hget("t:models", place))
        return None if raw is None else msgspec.json.decode(raw, type=ModelRecord)

    def state(self, place: str = "toy/1") -> str:
        record = self.record(place)
        return record.state if record else ""

    def runs(self) -> int:
        record = self.record()
        return int(record is not None and self.graph() == record.digest)


Start = Callable[..., Worker]


@pytest.fixture
def worker(client: redis.Redis, tmp_path: Path, tried: list[bytes]) -> Start:  # noqa: ARG001 - put in place of the trial
    """Make a worker with a folder of its own, or of the name that is given."""

    def make(name: str = "a", folder: str = "", **given: Any) -> Worker:
        (tmp_path / (folder or name)).mkdir(exist_ok=True)
        return Worker(client, tmp_path / (folder or name), name, **given)

    return make


def sha256(graph: bytes, worker: Worker) -> str:
    probe = worker.folder.parent / "probe" / "toy" / "1"
    probe.mkdir(parents=True, exist_ok=True)
    (probe / "model.onnx").write_bytes(graph)
    return digests(probe, probe.parents[1])["model.onnx"]


# --- One worker ---


def test_an_added_version_is_served_after_it_has_been_at_rest_for_a_poll(worker: Start, tried: list[bytes]) -> None:
    a = worker()
    a.put(GOOD)
    a.start()
    a.put(BETTER, version=2)
    a.polls(1)
    assert (a.graph(2), tried) == ("", [GOOD])
    a.put(BETTER + BETTER, version=2)  # the copy goes on
    a.polls(1)
    assert (a.graph(2), tried) == ("", [GOOD])
    a.polls(1)
    assert (a.graph(2), a.state("toy/2"), tried) == (sha256(BETTER * 2, a), "ready", [GOOD, BETTER * 2])


def test_a_folder_that_rests_is_tried_once(worker: Start, tried: list[bytes]) -> None:
    a = worker()
    a.put(GOOD)
    a.put(BAD, version=2)
    a.start()
    a.polls(5)
    assert tried == [GOOD, BAD]
    assert (a.state("toy/1"), a.state("toy/2")) == ("ready", "broken")


def test_a_worker_that_starts_again_knows_what_was_verified(worker: Start, tried: list[bytes]) -> None:
    for name in ("a", "again"):
        each = worker(name, "a")
        each.put(GOOD)
        each.start()
        each.catalog.leave()
    assert (tried, each.runs()) == ([GOOD], 1)


@pytest.mark.parametrize("change", ["graph", "companion", "model's file", "model.toml"])
def test_a_sound_change_is_tried_as_a_whole_and_replaces_the_record(
    worker: Start, tried: list[bytes], change: str
) -> None:
    a = worker()
    a.put(GOOD, labels=b"1")
    a.start()
    before = a.record()
    if change == "graph":
        a.put(BETTER)
    elif change == "companion":
        a.put(GOOD, labels=b"2")
    else:
        name, text = {"model.toml": ("model.toml", "weight = 2.0"), "model's file": ("vocab.txt", "v")}[change]
        (a.folder / "toy" / name).write_text(text)
    a.polls()
    record = a.record()
    assert len(tried) == 2
    assert record is not None
    assert record != before
    assert record == a.catalog.served("toy", 1).record


def test_a_broken_change_replaces_nothing_and_the_version_goes_on_from_memory(
    worker: Start, tried: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    a = worker()
    a.put(GOOD)
    a.start()
    a.put(BAD)
    a.polls(4)
    assert (a.state(), a.graph(), tried) == ("ready", sha256(GOOD, a), [GOOD, BAD])
    assert "goes on from memory" in caplog.text
    a.put(GOOD)
    a.polls()
    assert (a.state(), a.runs(), tried) == ("ready", 1, [GOOD, BAD])


def test_a_worker_that_starts_with_broken_files_says_so_where_nobody_has_good_ones(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    a.start()
    a.put(BAD)
    a.catalog.leave()
    again = worker("again", "a").start()
    assert (again.state(), again.graph()) == ("broken", "")


def test_a_broken_version_that_is_mended_is_served(worker: Start) -> None:
    a = worker()
    a.put(BAD)
    a.start()
    a.put(GOOD)
    a.polls()
    assert (a.state(), a.runs()) == ("ready", 1)


def test_a_removed_version_is_withdrawn_and_served_for_one_poll_more(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    a.put(BETTER, version=2)
    a.start()
    a.remove(2)
    a.polls(1)
    assert a.state("toy/2") == "ready"  # it may be on its way back: cp after rm
    a.polls(1)
    assert (a.state("toy/2"), a.graph(2)) == ("", sha256(BETTER, a))
    a.polls(1)
    assert (a.graph(2), a.runs()) == ("", 1)


def test_a_version_that_was_removed_while_no_worker_ran_is_withdrawn(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    a.put(GOOD, version=2)
    a.start().catalog.leave()
    a.remove(2)
    again = worker("again", "a").start()
    again.polls(1)
    assert (again.state("toy/1"), again.state("toy/2")) == ("ready", "")


def test_a_wrong_model_toml_breaks_its_version_alone_and_names_no_path(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    (a.folder / "wrong" / "1").mkdir(parents=True)
    (a.folder / "wrong" / "1" / "model.onnx").write_bytes(GOOD)
    (a.folder / "wrong" / "model.toml").write_text("[limits]\nrow_max = 1")
    a.start()
    record = a.record("wrong/1")
    assert record is not None
    assert (record.state, a.runs()) == ("broken", 1)
    assert record.reason.startswith("wrong/model.toml: limits: Object contains unknown field `row_max`")
    (a.folder / "wrong" / "model.toml").write_text("[limits]\nrows_max = 1")
    a.polls()
    assert a.state("wrong/1") == "ready"


def test_a_model_toml_that_turns_wrong_does_not_end_its_version(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    a.start()
    (a.folder / "toy" / "model.toml").write_text("x = ")
    a.polls(4)
    assert (a.state(), a.runs()) == ("ready", 1)


def test_a_folder_in_which_nothing_is_right_stops_the_start(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    (a.folder / "toy" / "model.toml").write_text("x = ")
    with pytest.raises(SetupError, match=r"model\.toml: not valid TOML"):
        a.start()


def test_a_models_folder_that_is_gone_changes_nothing(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    a.start()
    shutil.rmtree(a.folder)
    with pytest.raises(SetupError, match="no such folder"):
        a.polls(1)
    assert (a.state(), a.runs()) == ("ready", 1)


def test_a_store_that_forgot_is_told_again(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    a.start()
    a.client.flushall()
    a.polls(1)
    assert a.state() == "ready"


def test_a_version_is_prepared_before_it_is_published_and_retired_after_it_was_replaced(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    a.start()
    happened: list[tuple[str, str, str]] = []

    def note(what: str) -> Callable[[ModelRecord], None]:
        return lambda record: happened.append((what, record.digest, cast("ModelRecord", a.record()).digest))

    a.catalog.prepare, a.catalog.retire = note("prepared"), note("retired")
    a.put(BETTER)
    good, better = sha256(GOOD, a), sha256(BETTER, a)
    a.polls()
    assert happened == [("prepared", better, good)]
    a.polls(1)
    assert happened[1:] == [("retired", good, better)]


def test_a_version_that_cannot_be_prepared_is_broken(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    a.start()

    def refuse(_: ModelRecord) -> None:
        raise ModelUnavailableError("out of memory")

    a.catalog.prepare = refuse
    a.put(BETTER, version=2)
    a.polls()
    record = a.record("toy/2")
    assert record is not None
    assert (record.state, record.reason) == ("broken", "out of memory")


@pytest.mark.parametrize("allowed", [False, True])
def test_a_library_of_custom_operators_needs_the_operator_s_leave(worker: Start, allowed: bool) -> None:  # noqa: FBT001
    a = worker(custom_ops=allowed)
    a.put(GOOD)
    (a.folder / "toy" / "model.toml").write_text('inference = {custom_ops = ["libfoo.so"]}')
    (a.folder / "toy" / "libfoo.so").touch()
    (a.folder / "other" / "1").mkdir(parents=True)
    (a.folder / "other" / "1" / "model.onnx").write_bytes(GOOD)
    a.start()
    record = a.record()
    assert record is not None
    assert (record.state, bool(a.graph())) == (("ready", True) if allowed else ("broken", False))
    assert ("PENSTOCK_CUSTOM_OPS=true" in record.reason) is not allowed


def test_a_worker_without_leave_does_not_adopt_what_another_published(worker: Start) -> None:
    a, b = worker("a", "shared", custom_ops=True), worker("b", "shared")
    a.put(GOOD)
    a.put(GOOD, version=2)
    (a.folder / "toy" / "2" / "model.toml").write_text('inference = {custom_ops = ["libfoo.so"]}')
    (a.folder / "toy" / "2" / "libfoo.so").touch()
    a.start()
    b.start()
    assert (a.state("toy/2"), bool(a.graph(2)), b.graph(2)) == ("ready", True, "")


# --- Several workers ---


def test_what_one_worker_published_another_serves_at_once(worker: Start, tried: list[bytes]) -> None:
    a, b = worker("a", "shared"), worker("b", "shared")
    a.put(GOOD)
    a.start()
    b.start()
    a.put(BETTER, version=2)
    a.polls()
    assert (b.graph(2), tried) == (sha256(BETTER, a), [GOOD, BETTER])
    b.polls()
    assert (b.graph(2), len(tried)) == (sha256(BETTER, a), 2)


def test_a_version_is_withdrawn_when_the_last_worker_that_has_it_lets_go(worker: Start) -> None:
    a, b = worker("a"), worker("b")
    for each in (a, b):
        each.put(GOOD)
        each.put(GOOD, version=2)
        each.start()
    a.remove(2)
    a.polls(4)
    assert (a.state("toy/2"), b.graph(2)) == ("ready", sha256(GOOD, a))
    b.remove(2)
    b.polls()
    assert a.state("toy/2") == ""


def test_a_worker_withdraws_nothing_of_pools_that_it_does_not_serve(worker: Start) -> None:
    gpu, other = worker("gpu", pools=("gpu",)), worker("other")
    gpu.put(GOOD, version=7)
    (gpu.folder / "toy" / "model.toml").write_text('pool = "gpu"')
    gpu.start().catalog.leave()
    other.put(GOOD)
    other.start().polls(3)
    assert other.state("toy/7") == "ready"


def test_while_no_worker_of_its_pool_lives_a_version_stays(worker: Start) -> None:
    """Jobs wait for a worker that comes back."""
    a = worker()
    a.put(GOOD)
    a.start().catalog.leave()
    assert a.state() == "ready"


def test_a_worker_that_died_counts_until_its_hold_runs_out(worker: Start) -> None:
    dead, a = worker("dead", hold_s=0.2), worker("a")
    dead.put(GOOD, version=2)
    dead.start()
    a.put(GOOD)
    a.start().polls(1)
    assert a.state("toy/2") == "ready"
    a.client.zadd("t:holders:toy/2", {"dead": 1})
    a.polls(1)
    assert a.state("toy/2") == ""


def test_one_number_never_means_two_things_at_once(
    worker: Start, tried: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """The copy of one worker is changed first: it goes on as before until the other's is changed too."""
    a, b = worker("a"), worker("b")
    for each in (a, b):
        each.put(GOOD)
        each.start()
    a.put(BETTER)
    a.polls(4)
    assert [each.graph() for each in (a, b)] == [sha256(GOOD, a)] * 2
    assert (tried, caplog.text.count("model version not taken up")) == ([GOOD], 1)
    b.put(BETTER)
    for _ in range(4):
        a.polls(1)
        b.polls(1)
    assert [each.graph() for each in (a, b)] == [sha256(BETTER, a)] * 2
    assert tried.count(BETTER) == 1


def test_a_worker_that_comes_with_other_files_serves_nothing_under_that_number(
    worker: Start, tried: list[bytes]
) -> None:
    a, late = worker("a"), worker("late")
    a.put(GOOD)
    a.start()
    late.put(BETTER)
    late.put(GOOD, version=2)
    late.start().polls(3)
    assert (a.runs(), late.graph(1), late.graph(2), tried) == (1, "", sha256(GOOD, a), [GOOD, GOOD])
    a.catalog.leave()
    late.polls(1)
    assert (late.state(), late.runs()) == ("ready", 1)


def test_a_broken_change_in_a_shared_folder_leaves_all_workers_on_the_good_one(
    worker: Start, tried: list[bytes]
) -> None:
    a, b = worker("a", "shared"), worker("b", "shared")
    a.put(GOOD)
    a.start()
    b.start()
    a.put(BAD)
    for _ in range(4):
        a.polls(1)
        b.polls(1)
    assert [each.graph() for each in (a, b)] == [sha256(GOOD, a)] * 2
    assert (a.state(), tried) == ("ready", [GOOD, BAD])
    fresh = worker("fresh", "shared").start()
    assert (fresh.state(), fresh.graph()) == ("ready", "")


def test_a_wrong_model_toml_of_one_worker_breaks_no_version_that_another_holds(
    worker: Start, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = worker("a"), worker("b")
    for each in (a, b):
        each.put(GOOD)
    b.put(GOOD, version=2)
    a.start()
    (b.folder / "toy" / "1" / "model.toml").write_text("x = ")
    b.start().polls(3)
    assert (a.state(), a.runs(), b.graph()) == ("ready", 1, "")
    assert [caplog.text.count(words) for words in ("model version refused", "model version not taken up")] == [1, 1]
    a.catalog.leave()
    b.polls(1)
    assert b.state() == "broken"


def test_a_record_that_only_its_own_worker_holds_may_be_replaced(client: redis.Redis) -> None:
    one, other = (Published(client, "t", name, 60) for name in ("one", "other"))
    good, better = (ModelRecord("toy", 1, "ready", files={"model.onnx": each}) for each in ("1", "2"))
    assert one.put(good)
    assert one.put(better)
    assert not other.put(good)
    assert other.hold(better)
    assert not one.put(good)
    assert one.get("toy/1") == better


def test_a_worker_whose_record_was_replaced_serves_the_old_files_no_longer(worker: Start) -> None:
    """It was thought dead: its hold had run out."""
    a, b = worker("a"), worker("b")
    for each in (a, b):
        each.put(GOOD)
    a.start()
    a.client.delete("t:holders:toy/1")
    b.put(BETTER)
    b.start()
    assert (b.state(), b.runs()) == ("ready", 1)
    a.polls(1)
    assert a.graph() == ""


def test_a_broken_record_does_not_keep_a_good_one_out(worker: Start) -> None:
    a, b = worker("a"), worker("b")
    a.put(BAD)
    a.start()
    b.put(GOOD)
    b.start()
    a.polls(2)
    assert (a.state(), a.graph(), b.runs()) == ("ready", "", 1)


def test_what_a_stage_holds_stays_whole_through_a_change(worker: Start) -> None:
    a = worker()
    a.put(GOOD)
    a.start()
    held: Served = a.catalog.served("toy", 1)
    a.put(BETTER)
    a.polls()
    assert held.record.digest == sha256(GOOD, a)
