"""Where a tokenizer puts special tokens around one text or two, and how much of each text is kept beside them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple


class Marks(NamedTuple):
    """Special tokens that stand in a row: their ids and token types."""

    ids: list[int]
    types: list[int]


class Template(NamedTuple):
    """``marks`` stand before, between and behind the texts; ``types`` are the token types of the texts themselves."""

    marks: tuple[Marks, ...]
    types: tuple[int, ...]

    @property
    def added(self) -> int:
        """How many special tokens there are."""
        return sum(len(each.ids) for each in self.marks)

    def row(self, texts: Sequence[list[int]]) -> Marks:
        """The ids and token types of one row."""
        ids, types = self.marks[0].ids.copy(), self.marks[0].types.copy()
        for text, kind, marks in zip(texts, self.types, self.marks[1:], strict=True):
            ids += text + marks.ids
            types += [kind] * len(text) + marks.types
        return Marks(ids, types)


def learn(ids: Sequence[int], types: Sequence[int], texts: Sequence[int | None]) -> Template | None:
    """Read the template off a row: ``texts`` is the number of each token's text from 0, None for special tokens.

    None where the texts are not in order, each in one piece.
    """
    marks, found = [Marks([], [])], list[int]()
    for number, group in groupby(range(len(ids)), key=lambda place: texts[place]):
        places = list(group)
        if number is None:
            marks[-1] = Marks([ids[place] for place in places], [types[place] for place in places])
        elif number == len(found):
            found.append(types[places[0]])
            marks.append(Marks([], []))
        else:
            return None
    return Template(tuple(marks), tuple(found))


def shares(lengths: Sequence[int], room: int) -> Sequence[int]:
    """How many tokens of one text, or of each of two, are kept: the longer is cut first, then both alike.

    The same as the strategy ``longest_first`` of ``tokenizers``.
    """
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return (room,)
    first, second = lengths
    less = min(first, second, room // 2)
    return (less, room - less) if first <= second else (room - less, less)
