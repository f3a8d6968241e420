"""Which texts do options mean, how many, and one of them at random?

A tree of texts, sequences and choices, as `prompts` reads it from a template. Trees may share branches, so what a short
template means may be beyond counting: `count` stops at `MANY`, and nothing here goes through more than is asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, permutations
from math import comb, factorial
from random import Random

MANY = 2**64
"""Where counting ends: so many, or more."""
Fixed = Mapping["Once", str]
"""What was chosen once and is said again."""


@dataclass(frozen=True, eq=False)
class Text:
    """Words as they are."""

    text: str
    count = 1
    depth = 0

    @cached_property
    def size(self) -> int:
        """Most characters that a text of this can have, and steps to make it, together."""
        return 1 + len(self.text)

    def all(self, _fixed: Fixed) -> Iterator[str]:
        """Each text, in a fixed order."""
        yield self.text

    def draw(self, _random: Random, _fixed: Fixed) -> str:
        """One text at random."""
        return self.text


@dataclass(frozen=True, eq=False)
class Choice:
    """`low` to `high` of the options, each at most once, in any order, joined; `weights` are relative."""

    options: tuple[Node, ...]
    weights: tuple[float, ...]
    low: int = 1
    high: int = 1
    separator: str = ""

    @cached_property
    def count(self) -> int:
        # Source: how many ways to pick k is the k-th elementary symmetric polynomial of the options' counts. Equal
        # counts c, m times, are the factor (1 + c x)^m.
        ways = [1] + [0] * self.high
        for each, times in Counter(option.count for option in self.options).items():
            factor = [comb(times, k) * each**k for k in range(self.high + 1)]
            ways = [sum(ways[i] * factor[k - i] for i in range(k + 1)) for k in range(self.high + 1)]
        return min(MANY, sum(factorial(k) * ways[k] for k in range(self.low, self.high + 1)))

    @cached_property
    def size(self) -> int:
        longest = sorted((option.size for option in self.options), reverse=True)[: self.high]
        return 1 + sum(longest) + len(self.separator) * (self.high - 1)

    @cached_property
    def depth(self) -> int:
        """How many choices lie within each other."""
        return 1 + max(option.depth for option in self.options)

    @cached_property
    def _steps(self) -> list[float]:
        return list(accumulate(self.weights))

    def all(self, fixed: Fixed) -> Iterator[str]:
        for k in range(self.low, self.high + 1):
            for picked in permutations(self.options, k):
                for texts in product(picked, fixed):
                    yield self.separator.join(texts)

    def draw(self, random: Random, fixed: Fixed) -> str:
        # Only `random()` draws the same in every version of Python.
        k = self.low + int(random.random() * (self.high - self.low + 1))
        if k == 1:
            return self.options[_place(self._steps, random)].draw(random, fixed)
        left, weights, texts = list(self.options), list(self.weights), []
        for _ in range(k):
            place = _place(list(accumulate(weights)), random)
            texts.append(left.pop(place).draw(random, fixed))
            del weights[place]
        return self.separator.join(texts)


@dataclass(frozen=True, eq=False)
class Once:
    """What is chosen here, unsaid; `Again` says it."""

    value: Node

    @property
    def count(self) -> int:
        return self.value.count

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def depth(self) -> int:
        return self.value.depth

    def all(self, fixed: Fixed) -> Iterator[str]:
        return self.value.all(fixed)

    def draw(self, random: Random, fixed: Fixed) -> str:
        return self.value.draw(random, fixed)


@dataclass(frozen=True, eq=False)
class Again:
    """What was chosen there."""

    once: Once
    count = 1
    depth = 0

    @property
    def size(self) -> int:
        return self.once.size

    def all(self, fixed: Fixed) -> Iterator[str]:
        yield fixed[self.once]

    def draw(self, _random: Random, fixed: Fixed) -> str:
        return fixed[self.once]


@dataclass(frozen=True, eq=False)
class Sequence:
    """One after the other."""

    parts: tuple[Node, ...]

    @cached_property
    def count(self) -> int:
        found = 1
        for part in self.parts:
            found = min(MANY, found * part.count)
        return found

    @cached_property
    def size(self) -> int:
        return 1 + sum(part.size for part in self.parts)

    @cached_property
    def depth(self) -> int:
        return max((part.depth for part in self.parts), default=0)

    def all(self, fixed: Fixed) -> Iterator[str]:
        for texts in product(self.parts, fixed):
            yield self.said(texts)

    def draw(self, random: Random, fixed: Fixed) -> str:
        return self.said(self.drawn(random, fixed))

    def drawn(self, random: Random, fixed: Fixed) -> tuple[str, ...]:
        """One text of each part at random."""
        texts, known = [], dict(fixed)
        for part in self.parts:
            texts.append(part.draw(random, known))
            if isinstance(part, Once):
                known[part] = texts[-1]
        return tuple(texts)

    def said(self, texts: tuple[str, ...]) -> str:
        """The parts' texts without those that are unsaid."""
        return "".join(text for part, text in zip(self.parts, texts, strict=True) if not isinstance(part, Once))


Node = Text | Choice | Once | Again | Sequence


def product(parts: tuple[Node, ...], fixed: Fixed) -> Iterator[tuple[str, ...]]:
    """Each text of each part with each of the others, the last changing first."""
    if not parts:
        yield ()
        return
    known, texts = dict(fixed), list[str]()
    open_parts = [parts[0].all(known)]
    while open_parts:
        at = len(open_parts) - 1
        del texts[at:]
        text = next(open_parts[-1], None)
        if text is None:
            open_parts.pop()
            continue
        texts.append(text)
        part = parts[at]
        if isinstance(part, Once):
            known[part] = text
        if at + 1 == len(parts):
            yield tuple(texts)
        else:
            open_parts.append(parts[at + 1].all(known))


def _place(steps: list[float], random: Random) -> int:
    """Which of the options, going by their summed weights."""
    return min(bisect_right(steps, random.random() * steps[-1]), len(steps) - 1)
