"""What does the parser of dynamic prompts make of a template?

It takes milliseconds for a template, and most prompts of a file say the same options in other words. So a template is
given to it in pieces, and each piece once: options, wildcards, and the words between them, which need no parser.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from farm.errors import InvalidJob, Unavailable

TEMPLATE_CHARS = 10_000
"""Longest template and line, characters. Source: the parser takes a second for it."""
MAX_DEPTH = 16
"""How deep braces may lie within each other. Source: the parser takes some 25 calls for each, Python has 1,000."""
PIECES = 4096
"""Pieces that are remembered."""
INSTALL = "pip install 'latent-farm[dataset]'"
KEPT = {"$": "\ufdd0", "#": "\ufdd1", "//": "\ufdd2", "/*": "\ufdd3"}
"""What stands, on the way through the parser, for signs that begin nothing. Source: Unicode 23.7, codes no text has."""
WRAP = "\ufdd4{"
"""What begins a wrapping instead of %{, so that % is a sign like others."""
COMMENT = re.compile(r"^[ \t]*#(?:[ \t].*)?(?:\n|\Z)", re.M)
SIGN = re.compile(rf"[{{}}]|__|{COMMENT.pattern}", re.M)
"""What is not said as it stands: a text without one is no template."""
PIECE = re.compile(r"__(?:(?!__)[^(){}$])+__|[{}]")
"""A plain wildcard, or where options begin or end."""


def bad_template(why: str, hint: str = "") -> InvalidJob:
    """The refusal of a template."""
    return InvalidJob(why, code="bad_template", hint=hint)


def command_of(text: str) -> Any:
    """The command that a template is, as the parser's package has them.

    Raises:
        InvalidJob: (`bad_template`) it cannot be read.
        Unavailable: the package is missing.
    """
    try:
        from dynamicprompts.commands import SequenceCommand
        from pyparsing import ParseBaseException
    except ModuleNotFoundError as error:
        raise Unavailable(f"templates need {error.name}", hint=INSTALL) from None
    text = COMMENT.sub("", text).replace("\t", " ")
    _check(text)
    kept = re.sub(r"#|//|/\*", lambda sign: KEPT[sign[0]], text)
    kept = re.sub(r"(?<!\$)\$(?![${])", KEPT["$"], kept)
    try:
        try:
            return SequenceCommand([token for piece in _pieces(kept) for token in _tokens(piece)])
        except ParseBaseException:
            return SequenceCommand(list(_tokens(kept)))  # it tells the place, or what was no piece is one
    except ParseBaseException as error:
        raise bad_template(_why(text, error.loc)) from None
    except RecursionError:
        raise bad_template(f"more than {MAX_DEPTH} options lie within each other") from None
    except (ValueError, OverflowError):  # a number of thousands of digits
        raise bad_template("a number in the template is too large") from None


def said(text: str) -> str:
    """A text of the parser's with the signs that were kept from it."""
    for sign, code in KEPT.items():
        text = text.replace(code, sign)
    return text


@lru_cache(PIECES)
def _tokens(piece: str) -> tuple[Any, ...]:
    from dynamicprompts.commands import LiteralCommand, SequenceCommand
    from dynamicprompts.parser.parse import parse

    if not re.search(r"[{}$]|__", piece):
        return (LiteralCommand(piece),) if piece else ()
    found = parse(piece, _config())
    return tuple(found.tokens) if isinstance(found, SequenceCommand) else (found,)


@lru_cache(1)
def _config() -> Any:
    """The parser's settings: one object for good, by which it finds what it built."""
    from dynamicprompts.parser.config import ParserConfig

    return ParserConfig(wrap_start=WRAP)


def _pieces(text: str) -> list[str]:
    """The template in pieces that mean the same alone; as one where its braces do not match."""
    found, start, depth = [], 0, 0
    for sign in PIECE.finditer(text):
        at, end = sign.span()
        if sign[0] == "}":
            depth -= 1
            if depth < 0:
                return [text]
            if not depth:
                found.append(text[start:end])
                start = end
        elif depth or sign[0] == "{":
            if not depth:
                at -= text[start:at].endswith("$")
                found.append(text[start:at])
                start = at
            depth += sign[0] == "{"
        else:
            found += text[start:at], sign[0]
            start = end
    return [text] if depth else [*found, text[start:]]


def _check(text: str) -> None:
    """Nothing, if a template may be given to the parser."""
    if len(text) > TEMPLATE_CHARS:
        raise bad_template(f"{len(text):,} characters, a template has at most {TEMPLATE_CHARS:,}")
    if any(code in text for code in (*KEPT.values(), WRAP[0])):
        raise bad_template("the template holds a code that no text has")
    if found := re.search(r"\\[{}]", text):
        raise bad_template(f"character {found.start() + 1}: there are no escapes; a template cannot say {{ or }}")
    if "%{" in text:
        told = "%{..} is not taken; write the words around the options"
        raise bad_template(f"character {text.index('%{') + 1}: {told}")
    depth = 0
    for sign in re.finditer(r"[{}]", text):
        depth += 1 if sign[0] == "{" else -1
        if depth > MAX_DEPTH:
            raise bad_template(f"character {sign.start() + 1}: more than {MAX_DEPTH} options lie within each other")


def _why(text: str, place: int) -> str:
    """What is wrong with a template that the parser does not take from `place` on."""
    open_at: list[int] = []
    for sign in re.finditer(r"[{}]", text):
        if sign[0] == "{":
            open_at.append(sign.start())
        elif open_at:
            open_at.pop()
    if open_at:
        return f"the {{ at character {open_at[-1] + 1} is never closed"
    marks = [mark.start() for mark in re.finditer("__", text)]
    if len(marks) % 2:
        return f"the __ at character {marks[-1] + 1} has no other: a wildcard is __name__"
    if "$$" in text:
        told = "before $$ stands how many, between two of them what joins (ASCII without # $ { } //)"
        return f"character {place + 1}: {told}: {{2$$a|b|c}}, {{1-2$$ and $$a|b|c}}"
    return f"it cannot be read from character {place + 1} on: {text[place : place + 40]!r}"
