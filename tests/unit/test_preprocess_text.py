"""Kind ``text``: counted at the door, tokens in the stage; the reference is ``tokenizers`` asked row by row."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors

from jobs.errors import (
    InvalidInputError,
    MalformedError,
    PayloadTooLargeError,
    PenstockError,
    SetupError,
    UnsupportedMediaTypeError,
)
from jobs.models import Limits, ModelConfig, ModelRecord, StageConfig
from jobs.payload import TEXTS, Payload
from jobs.tensors import Tensors, make_of
from preprocess import tokens
from preprocess.kinds import Kind, check, kind
from preprocess.template import learn
from tests.unit import vocabularies
from tests.unit.graphs import record_of
from tests.unit.vocabularies import bare, byte_level, wordpiece

ROOT = Path(__file__).parents[2]
NAMES = ("input_ids", "attention_mask", "token_type_ids")
MAKERS = {"wordpiece": wordpiece, "byte_level": byte_level, "bare": bare}

Row = str | tuple[str, str]


def record(
    *names: str, length: int | None = None, dtype: str = "int64", limits: Limits | None = None, **options: Any
) -> ModelRecord:
    """A version of kind text, whose graph takes these inputs."""
    config = ModelConfig(preprocess=StageConfig("text", options), limits=limits or Limits())
    return record_of(*((name, dtype, (None, length)) for name in names or NAMES), config=config)


def door(*names: str, **given: Any) -> Kind:
    return kind(record(*names, **given))


@cache
def version_of(name: str) -> Path:
    """The folder of a version with this tokenizer, kept for the session."""
    return vocabularies.put(MAKERS[name](), Path(tempfile.mkdtemp(prefix="penstock-test-")))


def stage(*names: str, tokenizer: str = "wordpiece", **given: Any) -> Kind:
    if tokenizer == "bare":
        given = {"pad_id": 0, **given}
    return kind(record(*names, **given), version_of(tokenizer))


def json_of(rows: Sequence[Row]) -> bytes:
    return msgspec.json.encode([row if isinstance(row, str) else {"text": row[0], "pair": row[1]} for row in rows])


def made(asked: Kind, *inputs: Sequence[Row]) -> list[Tensors]:
    """The tensors of each input, all run together."""
    outcomes = asked.run([asked.from_json(json_of(rows)) for rows in inputs])
    good = [each for each in outcomes if not isinstance(each, PenstockError)]
    assert len(good) == len(inputs), outcomes
    return good


def expected(
    tokenizer: Tokenizer, rows: Sequence[Row], tokens_max: int, direction: str, buckets: list[int]
) -> Tensors:
    """What the library itself makes of the rows, one after the other, with its own truncation and padding."""
    tokenizer.enable_truncation(tokens_max, direction=direction)
    tokenizer.no_padding()
    encoded = [tokenizer.encode(row) if isinstance(row, str) else tokenizer.encode(*row) for row in rows]
    longest = max(len(each.ids) for each in encoded)
    length = next(
        bucket for bucket in [*(each for each in buckets if each < tokens_max), tokens_max] if bucket >= longest
    )
    pad = next((i for i in map(tokenizer.token_to_id, ("[PAD]", "<pad>")) if i is not None), 0)
    for each in encoded:
        each.pad(length, pad_id=pad)
    columns = [[e.ids for e in encoded], [e.attention_mask for e in encoded], [e.type_ids for e in encoded]]
    return dict(zip(NAMES, map(np.array, columns), strict=True))


def same(got: Tensors, reference: Tensors) -> None:
    assert got.keys() == reference.keys()
    for name, array in reference.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)


# --- The door ---


def rows_in(payload: Payload) -> Any:
    assert payload.media_type == TEXTS
    return msgspec.msgpack.decode(payload.data)


@pytest.mark.parametrize(
    ("raw", "rows"),
    [
        (b'"a \\u00e9 \\ud83d\\ude00"', [["a é 😀"]]),
        (b'""', [[""]]),
        (b'["a", "b"]', [["a"], ["b"]]),
        (b'{"text": "a", "pair": "b"}', [["a", "b"]]),
        (b'["a", {"pair": "c", "text": "b"}]', [["a"], ["b", "c"]]),
        (rb'"\"\\\"\\"', [['"\\"\\']]),
    ],
)
def test_json_becomes_rows_of_texts(raw: bytes, rows: Any) -> None:
    assert rows_in(door().from_json(raw)) == rows_in(door().from_json(msgspec.Raw(raw))) == rows


def test_equal_inputs_have_equal_payloads_however_they_are_written() -> None:
    forms = [b'"\\u00e9"', '"é"'.encode(), b'["\xc3\xa9"]', b' [ "\\u00E9" ] ']
    payloads = {door().from_json(form) for form in forms} | {door().from_bytes("text/plain", "é".encode())}
    assert len({msgspec.msgpack.encode(each) for each in payloads}) == 1


def test_different_inputs_have_different_payloads() -> None:
    inputs = [
        b'"ab"',
        b'["a", "b"]',
        b'{"text": "a", "pair": "b"}',
        b'[{"text": "a", "pair": "b"}, "c"]',
        b'["a", "bc"]',
    ]
    assert len({door().from_json(each).data for each in inputs}) == len(inputs)


@pytest.mark.parametrize(
    ("raw", "error", "pointer"),
    [
        (b"1", InvalidInputError, "/input"),
        (b"null", InvalidInputError, "/input"),
        (b"[]", InvalidInputError, "/input"),
        (b'["a", 1]', InvalidInputError, "/input/1"),
        (b'["a", ["b"]]', InvalidInputError, "/input/1"),
        (b'{"text": "a"}', InvalidInputError, "/input"),
        (b'{"text": "a", "pair": null}', InvalidInputError, "/input/pair"),
        (b'["a", {"text": 7, "pair": ""}]', InvalidInputError, "/input/1/text"),
        (b'[{"text": "a", "pair": "b", "x - at `$[7]": 0}]', InvalidInputError, "/input/0"),
        (b'["a", "b", "c", "d"]', InvalidInputError, "/input"),
        (b'["a", "bcdefghijkl"]', InvalidInputError, "/input/1"),
        (b'{"text": "a", "pair": "bcdefghijkl"}', InvalidInputError, "/input/pair"),
        (b'"bcdefghijkl"', InvalidInputError, "/input"),
        (b'"a', MalformedError, None),
        (b'"\xff"', MalformedError, None),
        (b'"\\ud800"', MalformedError, None),
        (b'"\\udc00 "', MalformedError, None),
        (b'"\xed\xa0\x80"', MalformedError, None),
        (b"[" * 100_000, InvalidInputError, "/input/0"),
        (b"", MalformedError, None),
    ],
)
def test_wrong_json_is_pointed_at(raw: bytes, error: type[PenstockError], pointer: str | None) -> None:
    with pytest.raises(error) as caught:
        door(limits=Limits(rows_max=3), chars_max=10).from_json(raw)
    assert caught.value.pointer == pointer


def test_a_million_texts_are_refused_unread() -> None:
    with pytest.raises(InvalidInputError, match="got more texts; expected a string"):
        door().from_json(b'["\\\\"' + b',"\\\\"' * 1_000_000 + b"]")


def test_texts_full_of_quotation_marks_are_taken() -> None:
    text = '"' * 5_000 + "\\" * 5_000
    assert rows_in(door().from_json(msgspec.json.encode([text] * 16))) == [[text]] * 16


def test_bytes_count_as_utf_8_over_all_texts() -> None:
    asked = door(limits=Limits(input_bytes_max=8))
    assert asked.from_json('["éé", {"text": "é", "pair": "é"}]'.encode())
    with pytest.raises(PayloadTooLargeError, match="has 9 bytes"):
        asked.from_json('["éé", {"text": "é", "pair": "éa"}]'.encode())
    with pytest.raises(PayloadTooLargeError):
        asked.from_bytes("text/plain", b"123456789")


def test_a_raw_body_is_one_text_in_utf_8() -> None:
    assert door().media_types == {"text/plain"}
    assert rows_in(door().from_bytes("text/plain", "é\n".encode())) == [["é\n"]]
    with pytest.raises(InvalidInputError, match="not UTF-8 at byte 1"):
        door().from_bytes("text/plain", b"a\xff")
    with pytest.raises(InvalidInputError, match="11 characters; this model takes up to 10"):
        door(chars_max=10).from_bytes("text/plain", b"a" * 11)
    with pytest.raises(UnsupportedMediaTypeError):
        door().from_bytes("text/html", b"a")


def test_the_door_loads_no_tokenizer() -> None:
    program = (
        "import sys\n"
        "from jobs.models import ModelConfig, ModelRecord, Signature, StageConfig, TensorSpec\n"
        "from preprocess.kinds import kind\n"
        "signature = Signature((TensorSpec('input_ids', 'int64', (None, None)),), ())\n"
        "config = ModelConfig(preprocess=StageConfig('text'))\n"
        "kind(ModelRecord('toy', 1, 'ready', config, signature=signature)).from_json(b'\"a\"')\n"
        "assert 'tokenizers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_a_kind_without_a_folder_does_not_run() -> None:
    with pytest.raises(RuntimeError, match="cannot run"):
        door().run([door().from_json(b'"a"')])


# --- The stage ---


def test_a_row_is_framed_padded_and_masked() -> None:
    (item,) = made(stage(), ["the Days"])
    assert item["input_ids"].tolist() == [[2, 11, 7, 9, 3] + [0] * 11]
    assert item["attention_mask"].tolist() == [[1] * 5 + [0] * 11]
    assert item["token_type_ids"].tolist() == [[0] * 16]
    assert list(item) == list(NAMES)


def test_the_second_text_of_a_pair_has_another_type() -> None:
    (item,) = made(stage(buckets=[8]), [("a b", "c")])
    assert item["input_ids"][0, :6].tolist() == [2, 4, 5, 3, 6, 3]
    assert item["token_type_ids"][0].tolist()[:6] == [0, 0, 0, 0, 1, 1]


words = st.lists(st.sampled_from(["a", "b", "Nights", "daytime", "Zürich", "[SEP]", "."]), max_size=14).map(" ".join)
rows_of_texts = st.lists(words | st.tuples(words, words), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.lists(rows_of_texts, min_size=1, max_size=4),
    tokenizer=st.sampled_from(sorted(MAKERS)),
    tokens_max=st.integers(5, 30),
    direction=st.sampled_from(["right", "left"]),
    buckets=st.sets(st.integers(1, 40), min_size=1).map(sorted),
)
def test_what_the_library_makes_of_each_row_is_made_of_all(
    inputs: list[list[Row]], tokenizer: str, tokens_max: int, direction: str, buckets: list[int]
) -> None:
    asked = stage(tokenizer=tokenizer, tokens_max=tokens_max, truncation=direction, buckets=buckets)
    reference = MAKERS[tokenizer]()
    for got, rows in zip(made(asked, *inputs), inputs, strict=True):
        same(got, expected(reference, rows, tokens_max, direction, buckets))


def test_the_files_own_padding_and_truncation_do_not_count(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=100, pad_id=11, pad_token="the", direction="left")
    asked = kind(record(buckets=[8]), vocabularies.put(tokenizer, tmp_path))
    (item,) = made(asked, ["a b c a b"])
    assert item["input_ids"].tolist() == [[2, 4, 5, 6, 4, 5, 3, 11]]  # but for the token that it pads with


@pytest.mark.parametrize(
    ("options", "pad"),
    [({}, 0), ({"pad_id": 9}, 9), ({"pad_token": "the"}, 11), ({"pad_token": "b", "pad_id": 5}, 5)],
)
def test_rows_are_filled_up_with_the_token_that_is_named(options: dict[str, Any], pad: int) -> None:
    (item,) = made(stage(buckets=[4], **options), ["a"])
    assert item["input_ids"].tolist() == [[2, 4, 3, pad]]


def test_inputs_of_one_bucket_have_one_make() -> None:
    items = made(stage(buckets=[4, 8]), ["a"], ["b c"], ["a b c"], ["a", "a b c a b c"])
    assert [item["input_ids"].shape for item in items] == [(1, 4), (1, 4), (1, 8), (2, 8)]
    assert make_of(items[0]) == make_of(items[1]) != make_of(items[2]) == make_of(items[3])


def test_texts_longer_than_the_last_bucket_are_padded_to_the_most_tokens() -> None:
    items = made(stage(buckets=[4], tokens_max=9), ["a b c"], ["a " * 100])
    assert [item["input_ids"].shape for item in items] == [(1, 9), (1, 9)]


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_a_graph_of_one_length_gets_it_in_its_dtype(dtype: str) -> None:
    short, long = made(stage(length=12, dtype=dtype), ["a"], ["a " * 30])
    assert {(array.shape, array.dtype.name) for item in (short, long) for array in item.values()} == {
        ((1, 12), dtype)
    }
    assert long["attention_mask"].all()


def test_a_graph_gets_the_inputs_that_it_has_by_the_names_that_it_has() -> None:
    (item,) = made(stage("mask", "ids", input_ids="ids", attention_mask="mask"), ["a"])
    assert list(item) == ["mask", "ids"]


def test_a_text_that_is_too_long_fails_alone_where_nothing_may_be_cut() -> None:
    asked = stage(truncation="error", tokens_max=5, buckets=[5])
    fits, long, pair = asked.run(
        [asked.from_json(json_of(rows)) for rows in (["a b c"], ["a", "a b c a"], [("a", "b c")])]
    )
    assert not isinstance(fits, PenstockError)
    assert isinstance(long, InvalidInputError)
    assert long.detail == "row 1 has 6 tokens; this model takes up to 5"
    assert isinstance(pair, InvalidInputError)
    assert "row 0 has 6 tokens" in pair.detail


@pytest.mark.parametrize(
    "payload",
    [
        Payload("text/plain", b"a"),
        Payload(TEXTS, b""),
        Payload(TEXTS, b"\xc1"),
        Payload(TEXTS, msgspec.msgpack.encode([])),
        Payload(TEXTS, msgspec.msgpack.encode([[]])),
        Payload(TEXTS, msgspec.msgpack.encode([["a", "b", "c"]])),
        Payload(TEXTS, msgspec.msgpack.encode(["a"])),
        Payload(TEXTS, b"\x91\x91\xa1\xff"),
    ],
)
def test_a_stored_input_that_is_no_text_fails_alone(payload: Payload) -> None:
    good = stage().from_json(b'"a"')
    first, second, third = stage().run([good, payload, good])
    assert isinstance(second, InvalidInputError)
    assert not isinstance(first, PenstockError)
    assert not isinstance(third, PenstockError)


class Panic(BaseException):
    """As PyO3 raises where Rust panics."""


Panic.__name__ = "PanicException"


def fragile(calls: list[int], error: BaseException) -> Mock:
    """A tokenizer that fails on every call with the text "bad" in it."""
    inner = wordpiece()

    def encode(texts: list[str], **given: Any) -> Any:
        calls.append(len(texts))
        if "bad" in texts:
            raise error
        return inner.encode_batch_fast(texts, **given)

    return Mock(wraps=inner, encode_batch_fast=encode)


@pytest.mark.parametrize("error", [Panic(), ValueError("secret")])
def test_a_text_that_the_library_fails_on_fails_alone(error: BaseException) -> None:
    asked, calls = stage(), list[int]()
    asked._stage._tokens._inner = fragile(calls, error)  # type: ignore[attr-defined]
    try:
        outcomes = asked.run([asked.from_json(json_of(rows)) for rows in (["a"], ["b", "bad"], ["c"])])
    finally:
        asked._stage._tokens._inner = wordpiece()  # type: ignore[attr-defined]
    assert [isinstance(each, InvalidInputError) for each in outcomes] == [False, True, False]
    assert "row 1" in str(outcomes[1])
    assert "secret" not in str(outcomes[1])
    assert calls == [4, 1, 1, 1, 1]


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_want_of_memory_is_the_stages_affair(error: BaseException) -> None:
    asked = stage()
    asked._stage._tokens._inner = fragile([], error)  # type: ignore[attr-defined]
    with pytest.raises(type(error)):
        asked.run([asked.from_json(b'"bad"')])


def test_a_micro_batch_is_one_call_and_many_characters_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, calls = stage(), list[int]()
    asked._stage._tokens._inner = fragile(calls, ValueError())  # type: ignore[attr-defined]
    monkeypatch.setattr(tokens, "_CHARACTERS_A_CALL", 10)
    made(asked, ["aaaa", "bbbb"], [("cc", "d")], ["e" * 30])
    assert calls == [3, 1, 1]
    calls.clear()
    monkeypatch.undo()
    made(asked, ["aaaa", "bbbb"], [("cc", "d")], ["e" * 30])
    assert calls == [5]


def test_long_pairs_take_little_time_and_memory() -> None:
    """The library's own truncation of a pair takes 1.6 GB for these."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made(stage(), [("a " * 20_000, "b " * 20_000)])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# --- What a model may say ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"token_max": 5}, "known keys: tokens_max, truncation, buckets"),
        ({"tokens_max": 0}, "preprocess.options.tokens_max: Expected `int` >= 1"),
        ({"truncation": "middle"}, "preprocess.options.truncation"),
        ({"buckets": []}, "preprocess.options.buckets: Expected `array` of length >= 1"),
        ({"buckets": [0, 4]}, "preprocess.options.buckets[0]"),
        ({"pad_id": -1}, "preprocess.options.pad_id"),
        ({"chars_max": 0}, "preprocess.options.chars_max"),
    ],
)
def test_wrong_options_name_key_and_remedy(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        check(StageConfig("text", options))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("names", "given", "says"),
    [
        (("input_ids", "image"), {}, "nothing fills the graph's input image; say by input_ids"),
        (("attention_mask",), {}, "the graph has no input input_ids"),
        ((), {"dtype": "float32"}, "input_ids: kind text fills inputs of rows x tokens in int64 or int32"),
        ((), {"buckets": [8, 4]}, "preprocess.options.buckets: not in ascending order"),
        ((), {"buckets": [4, 4]}, "preprocess.options.buckets: not in ascending order"),
        ((), {"attention_mask": "input_ids"}, "must have different names"),
    ],
)
def test_options_that_contradict_the_graph_are_a_setup_error(names: Any, given: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        door(*names, **given)
    assert says in str(caught.value)


def test_inputs_of_other_forms_are_a_setup_error() -> None:
    config = ModelConfig(preprocess=StageConfig("text"))
    differ = record_of(("input_ids", "int64", (None, 8)), ("attention_mask", "int64", (None, 9)), config=config)
    deep = record_of(("input_ids", "int64", (None, 8, 2)), config=config)
    for wrong, says in ((differ, "differ in the number of tokens"), (deep, "rows x tokens")):
        with pytest.raises(SetupError, match=says):
            kind(wrong)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tokens_max": 3}, "preprocess.options.tokens_max: 3 leaves no room for text beside 3 special tokens"),
        ({"length": 2}, "tokens_max: 2 leaves no room"),
        ({"pad_token": "nowhere"}, "preprocess.options.pad_token: 'nowhere' has the id None in toy/1/tokenizer.json"),
        ({"pad_token": "the", "pad_id": 3}, "preprocess.options.pad_token: 'the' has the id 11"),
    ],
)
def test_options_that_contradict_the_tokenizer_are_a_setup_error(given: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        stage(**given)
    assert says in str(caught.value)


def test_a_tokenizer_without_a_token_for_padding_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"preprocess\.options\.pad_id: missing, and toy/1/tokenizer\.json names no"):
        kind(record(), vocabularies.put(bare(), tmp_path))


# --- The file ---


def refusal(version: Path) -> str:
    """What a worker says of the version's file, without naming where its models lie."""
    with pytest.raises(SetupError) as caught:
        kind(record(), version)
    assert str(version) not in str(caught.value)
    return str(caught.value)


def test_a_versions_own_tokenizer_wins_over_the_models(tmp_path: Path) -> None:
    version = vocabularies.put(wordpiece(), tmp_path)
    (version / "tokenizer.json").rename(version.parent / "tokenizer.json")
    assert made(kind(record(), version), ["a"])[0]["input_ids"][0, 0] == 2
    byte_level().save(str(version / "tokenizer.json"))
    assert made(kind(record(), version), ["a"])[0]["input_ids"][0, 0] == 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    version = tmp_path / "toy" / "1"
    version.mkdir(parents=True)
    assert refusal(version).startswith("toy/1/tokenizer.json: no such file, nor one folder up")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"version":"1.0","model":{"type":"BPE"}}']
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, data: bytes) -> None:
    version = vocabularies.put(wordpiece(), tmp_path)
    (version / "tokenizer.json").write_bytes(data)
    assert refusal(version).startswith("toy/1/tokenizer.json: not a tokenizer that tokenizers 0.")


def test_a_file_of_another_size_than_any_tokenizers_is_not_read(tmp_path: Path) -> None:
    version = vocabularies.put(wordpiece(), tmp_path)
    with (version / "tokenizer.json").open("r+b") as file:
        file.truncate(200 * 1024 * 1024)
    assert refusal(version).startswith("toy/1/tokenizer.json: larger than 134217728 bytes")


def test_a_template_that_repeats_a_text_is_refused(tmp_path: Path) -> None:
    tokenizer = wordpiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A $A", pair="$A $B", special_tokens=[])
    assert "puts texts out of order, or twice" in refusal(vocabularies.put(tokenizer, tmp_path))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$B $A", special_tokens=[])
    assert "puts texts out of order, or twice" in refusal(vocabularies.put(tokenizer, tmp_path))


def test_the_template_is_read_off_a_row() -> None:
    template = learn([9, 1, 1, 8, 7, 2, 6], [0, 0, 0, 0, 1, 1, 2], [None, 0, 0, None, None, 1, None])
    assert template is not None
    assert template.added == 4
    assert template.row([[3], [4, 5]]) == ([9, 3, 8, 7, 4, 5, 6], [0, 0, 0, 1, 1, 1, 2])
