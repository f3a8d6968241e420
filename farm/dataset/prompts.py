"""Which prompts does a template mean?

The templates of dynamic prompts, as its parser reads them::

    a {red|0.5::blue|{dark|light} green} cat     one of them, blue half as often
    {2$$x|y|z}  {1-2$$ and $$x|y|z}              two of them in any order, joined with a comma; one or two, with " and "
    __animals/cat__  {2$$__colours*__}           a line of a wildcard, which is a template again; two lines of several
    ${c={red|blue}} ${c} ${c}                    the same choice, made twice; ${c:green} has a default
    ${c=!{red|blue}} ${c} ${c}                   one choice, said twice
    __outfit(c=red)__                            a wildcard whose lines say ${c}
    # ..                                         a line that begins so is a comment

There are no escapes: a template cannot say { or }. An option of weight 0 is none. What the parser takes but a dataset
decides for all its rows (`{~a|b}`, `{!a|b}`, `{@a|b}`), and wrapping (`%{..$$..}`), is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from random import Random
from typing import Any

from farm.dataset.options import MANY, Again, Choice, Node, Once, Sequence, Text, product
from farm.dataset.syntax import SIGN, bad_template, command_of, said
from farm.dataset.wildcards import Wildcards
from farm.errors import InvalidJob

__all__ = ["MANY", "Template", "Wildcards"]

MAX_NESTED = 32
"""How deep choices may lie within each other, with those of wildcards. Source: each takes ten of 1,000 calls."""
MAX_SIZE = 100_000
"""Most characters of one prompt and steps to make it. Source: a prompt has 2,000."""
MAX_PICKED = 64
"""Most options that are picked together."""
WEIGHT = re.compile(r"(\d+\.?\d*|\.\d+)::")
Known = Mapping[str, Node]
"""What each variable is."""
Options = tuple[tuple[Node, float], ...]
"""What can be chosen, with weights."""


@dataclass(frozen=True)
class Template:
    """What a prompt with options means.

    Each of its texts comes with the choices that led to it: one text for each of the options and wildcards that lie in
    no other, in their order, so that all texts of a template have equally many.
    """

    text: str
    tree: Sequence

    @staticmethod
    def parse(text: str, wildcards: Wildcards) -> Template:
        """What `text` means.

        Raises:
            InvalidJob: (`bad_template`) names what in it cannot be read, is not known, or is too much.
            Unavailable: the package that reads templates is missing.
        """
        if not SIGN.search(text):
            return Template(text, Sequence((Text(text),)))
        return Template(text, Sequence(_parts(_Reader(wildcards).read(text, {}, ()))))

    @property
    def count(self) -> int:
        """How many ways there are to choose, at most `MANY`; two of them may read the same."""
        return self.tree.count

    def all(self, limit: int) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Every text with its choices, in a fixed order, the last option changing first; weights mean nothing.

        Raises:
            InvalidJob: (`bad_template`) there are more than `limit`.
        """
        if self.count > limit:
            told = f"{self.count:,}" if self.count < MANY else f"more than {MANY:,}"
            hint = "have fewer options, or let some be drawn at random"
            raise bad_template(f"the template means {told} prompts, at most {limit:,} are taken", hint)
        return (self._told(texts) for texts in product(self.tree.parts, {}))

    def draw(self, random: Random) -> tuple[str, tuple[str, ...]]:
        """One text with its choices; equal states of `random` give equal ones, in any version of Python."""
        return self._told(self.tree.drawn(random, {}))

    def _told(self, texts: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        chosen = (
            text.strip() for part, text in zip(self.tree.parts, texts, strict=True) if isinstance(part, Choice | Once)
        )
        return self.tree.said(texts), tuple(chosen)


class _Reader:
    """Makes trees of what the parser makes. `above` names the wildcards that a template lies in."""

    def __init__(self, wildcards: Wildcards) -> None:
        self._wildcards = wildcards
        self._own: dict[Any, Any] = {}

    def read(self, text: str, known: Known, above: tuple[str, ...]) -> Node:
        """The tree of a template or of a wildcard's line."""
        if not SIGN.search(text):
            return Text(text)
        found = self._node(command_of(text), known, above)
        if any(isinstance(part, Text) and "}" in part.text for part in _parts(found)):
            raise bad_template("a } closes nothing", "take it out: a template cannot say { or }")
        return found

    def _node(self, command: Any, known: Known, above: tuple[str, ...]) -> Node:
        from dynamicprompts import commands
        from dynamicprompts.commands import variable_commands as variables

        if isinstance(command, commands.LiteralCommand):
            found: Node = Text(said(command.literal))
        elif isinstance(command, commands.VariantCommand):
            found = self._choice(command, known, above)
        elif isinstance(command, commands.WildcardCommand):
            found = self._wildcard(command, known, above)
        elif isinstance(command, variables.VariableAccessCommand):
            found = self._variable(command, known, above)
        else:
            tokens = command.tokens if isinstance(command, commands.SequenceCommand) else [command]
            found = self._sequence(tokens, known, above)
        if found.size > MAX_SIZE:
            raise bad_template(f"a prompt of this template may have more than {MAX_SIZE:,} characters and choices")
        if found.depth > MAX_NESTED:
            raise bad_template(f"more than {MAX_NESTED} choices lie within each other")
        return found

    def _sequence(self, tokens: list[Any], known: Known, above: tuple[str, ...]) -> Node:
        from dynamicprompts.commands.variable_commands import VariableAssignmentCommand

        here, parts = dict(known), list[Node]()
        given = [token for token in tokens if isinstance(token, VariableAssignmentCommand)]
        for token in given:
            if sum(token.name == other.name for other in given) > 1:
                raise bad_template(f"the variable {token.name} is given twice", "give the second another name")
            if token.name in known and not token.overwrite:
                continue
            value = self._node(token.value, here, above)
            if token.immediate and value.count > 1:
                parts.append(once := Once(value))
                value = Again(once)
            here[token.name] = value
        for token in tokens:
            if not isinstance(token, VariableAssignmentCommand):
                parts.extend(_parts(self._node(token, here, above)))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts)) if parts else Text("")

    def _variable(self, command: Any, known: Known, above: tuple[str, ...]) -> Node:
        if command.name in known:
            return known[command.name]
        if command.default is None:
            hint = f"give it in the template, ${{{command.name}=..}}, or a default, ${{{command.name}:..}}"
            raise bad_template(f"the variable {command.name} is not given", hint)
        return self._node(command.default, known, above)

    def _choice(self, command: Any, known: Known, above: tuple[str, ...]) -> Node:
        from dynamicprompts.commands import WildcardCommand

        _check_sign(command)
        values = command.values
        if len(values) == 1 and isinstance(values[0], WildcardCommand):
            name, options = self._lines(values[0], known, above)
        else:
            name = "{..}"
            options = tuple((self._option(v.value, known, above), v.weight) for v in command.variants)
            if len(options) == 1 and isinstance(options[0][0], Text) and not options[0][0].text:
                raise bad_template("{} has no options")
        return _chosen(options, name, command.min_bound, command.max_bound, said(command.separator))

    def _option(self, command: Any, known: Known, above: tuple[str, ...]) -> Node:
        found = self._node(command, known, above)
        start = _parts(found)[0]
        if isinstance(start, Text) and "::" in start.text:
            weight = start.text.partition("::")[0].strip()
            raise bad_template(f"{weight[:40]!r} before :: is no weight", "write a number from 0 on, as in {0.5::a|b}")
        return found

    def _wildcard(self, command: Any, known: Known, above: tuple[str, ...]) -> Node:
        name, options = self._lines(command, known, above)
        # Lines that were made once are chosen from by one choice, for it adds up their weights.
        kept = self._wildcards.known
        if kept.get(("lines", name)) is not options:
            return _chosen(options, name)
        if ("choice", name) not in kept:
            kept["choice", name] = _chosen(options, name)
        return kept["choice", name]

    def _lines(self, command: Any, known: Known, above: tuple[str, ...]) -> tuple[str, Options]:
        """What a wildcard is called, and the lines of all that it means."""
        _check_sign(command)
        if isinstance(command.wildcard, str):
            name = command.wildcard
        else:
            parts = _parts(self._node(command.wildcard, known, above))
            name = "".join(part.text for part in parts if isinstance(part, Text))
            if not all(isinstance(part, Text) for part in parts):
                raise bad_template("a wildcard's name cannot be chosen", "choose between wildcards: {__a__|__b__}")
        name = said(name).strip()
        names = self._wildcards.matching(name)
        if not names:
            near = get_close_matches(name, self._wildcards.lines, 3, 0.5)
            raise bad_template(
                f"there is no wildcard __{name}__", f"there is __{'__, __'.join(near)}__" if near else ""
            )
        here = {**known, **{key: self._node(value, known, above) for key, value in command.variables.items()}}
        if len(names) == 1:
            return f"__{name}__", self._of(names[0], here, above)
        return f"__{name}__", tuple(line for each in names for line in self._of(each, here, above))

    def _of(self, name: str, known: Known, above: tuple[str, ...]) -> Options:
        """The lines of one wildcard, made once for each of what its variables are, where it may have any."""
        trail = (*above, name)
        if name in above:
            raise bad_template(f"a wildcard leads back to itself: {' > '.join(trail)}")
        if len(trail) > MAX_NESTED:
            raise bad_template(f"more than {MAX_NESTED} wildcards lie within each other")
        lines = self._wildcards.lines[name]
        kept = self._wildcards.known
        key: tuple[Any, ...] = ("lines", f"__{name}__")
        if known:
            if ("open", name) not in kept:
                kept["open", name] = any("${" in line or "__" in line for line in lines)
            if kept["open", name]:
                kept, key = self._own, (name, *sorted(known.items(), key=lambda item: item[0]))
        if key not in kept:
            kept[key] = tuple(self._line(line, known, trail) for line in lines)
        return kept[key]

    def _line(self, line: str, known: Known, above: tuple[str, ...]) -> tuple[Node, float]:
        found = WEIGHT.match(line)
        weight, text = (float(found[1]), line[found.end() :].lstrip()) if found else (1.0, line)
        try:
            return self.read(text, known, above), weight
        except InvalidJob as error:
            if error.message.startswith(_IN):
                raise
            raise bad_template(f"{_IN}{above[-1]}__, {line[:40]!r}: {error.message}", error.hint) from None


_IN = "in __"


def _parts(node: Node) -> tuple[Node, ...]:
    return node.parts if isinstance(node, Sequence) else (node,)


def _check_sign(command: Any) -> None:
    if command.sampling_method is not None:
        sign = {"random": "~", "combinatorial": "!", "cycle": "@"}[command.sampling_method.value]
        raise bad_template(
            f"{sign} before options is not taken: the dataset says whether all or some at random are meant"
        )


def _chosen(
    options: tuple[tuple[Node, float], ...], name: str, low: int = 1, high: int = 1, separator: str = ""
) -> Choice:
    """A choice of these options, of which equal texts are one, with their weights together."""
    weights: dict[Node | str, float] = {}
    nodes: dict[Node | str, Node] = {}
    for node, weight in options:
        if not isfinite(weight):
            raise bad_template(f"a weight in {name} is too large")
        if weight > 0:
            key = node.text if isinstance(node, Text) else node
            nodes.setdefault(key, node)
            weights[key] = weights.get(key, 0.0) + weight
    if not nodes:
        raise bad_template(f"{name} has no options", "a weight of 0 leaves an option out" if options else "")
    if low > len(nodes):
        raise bad_template(f"{low} of the options of {name} are to be picked, it has {len(nodes)}")
    if not high:
        raise bad_template(f"0 of the options of {name} are to be picked")
    if min(high, len(nodes)) > MAX_PICKED:
        raise bad_template(f"{high} of the options of {name} are to be picked, at most {MAX_PICKED} are taken")
    return Choice(tuple(nodes.values()), tuple(weights.values()), low, min(high, len(nodes)), separator)
