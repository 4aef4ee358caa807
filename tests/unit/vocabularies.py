"""Small tokenizers, built where a test needs one, as ``tokenizer.json`` files of a version's folder."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("a", "b", "c", "day", "night", "##s", "##time", "the")


def wordpiece() -> Tokenizer:
    """BERT's form: word pieces, lower case, [CLS] text [SEP] pair [SEP]."""
    words = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])],
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """RoBERTa's form: bytes, <s> text </s></s> pair </s>, and types that are all 0."""
    special = {"<s>": 0, "<pad>": 1, "</s>": 2}
    letters = {letter: number + 3 for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({**special, **letters}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def bare() -> Tokenizer:
    """Words between blanks, and no special tokens at all."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def put(tokenizer: Tokenizer, folder: Path) -> Path:
    """Save it in the version's folder ``<folder>/toy/1``, which it gives."""
    version = folder / "toy" / "1"
    version.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(version / "tokenizer.json"))
    return version
