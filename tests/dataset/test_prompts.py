"""Does a template mean what its users expect, is it counted rightly, and is what means too much refused in time?"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from dynamicprompts.commands import SequenceCommand
from dynamicprompts.parser.parse import parse
from hypothesis import given, settings
from hypothesis import strategies as st
from pyparsing import ParseBaseException

from farm.dataset.prompts import MANY, Template, Wildcards
from farm.dataset.syntax import command_of
from farm.errors import InvalidJob
from tests.test_extras import without

WILDCARDS = Wildcards(
    {
        "colour": ("red", "blue", "0.5::green"),
        "cat/big": ("lion", "{old|young} tiger"),
        "cat/small": ("__colour__ cat",),
        "cat/far/wild": ("lynx",),
        "outfit": ("${c} hat and ${c} coat",),
        "coat": ("${c:grey} coat",),
        "other": ("${c=black}${c} shoes",),
        "loop": ("a", "__leads__"),
        "leads": ("to a __loop__",),
        "signs": ("#1", "100%", "$5", "{a|b} #2"),
        "none": (),
        "open": ("{a|b",),
        "zero": ("0::a", "0.0::b"),
    }
)
MEANS: dict[str, list[str]] = {
    "a cat": ["a cat"],
    "": [""],
    "a {red|blue} cat": ["a red cat", "a blue cat"],
    "{a|b}{c|d}": ["ac", "ad", "bc", "bd"],
    "{a|}b": ["ab", "b"],
    "{a}": ["a"],
    "{a|a|b}": ["a", "b"],
    "{a|{b|c} d}": ["a", "b d", "c d"],
    "{{a|b}|{c|d}}": ["a", "b", "c", "d"],
    "{0.5::a|b}": ["a", "b"],
    "{.5::a|2.::b|3::c}": ["a", "b", "c"],
    "{0::a|b}": ["b"],
    "{2$$x|y|z}": ["x,y", "x,z", "y,x", "y,z", "z,x", "z,y"],
    "{1-2$$ and $$a|b}": ["a", "b", "a and b", "b and a"],
    "{-2$$a|b}": ["a", "b", "a,b", "b,a"],
    "{1-$$a|b}": ["a", "b", "a,b", "b,a"],
    "{0-1$$a|b}": ["", "a", "b"],
    "{1-9$$a|b}": ["a", "b", "a,b", "b,a"],
    "{2$$ $$a|{b|c}}": ["a b", "a c", "b a", "c a"],
    "{2$$|$$a|b}": ["a|b", "b|a"],
    "__colour__ hat": ["red hat", "blue hat", "green hat"],
    "{__colour__|pink}": ["red", "blue", "green", "pink"],
    "{2$$__colour__}": ["red,blue", "red,green", "blue,red", "blue,green", "green,red", "green,blue"],
    "__cat/big__": ["lion", "old tiger", "young tiger"],
    "__cat/small__": ["red cat", "blue cat", "green cat"],
    "__cat/*__": ["lion", "old tiger", "young tiger", "red cat", "blue cat", "green cat"],
    "__**wild__": ["lynx"],
    "__cat/**/wild__": ["lynx"],
    "${c={red|blue}}${c} ${c}": ["red red", "red blue", "blue red", "blue blue"],
    "${c=!{red|blue}}${c} ${c}": ["red red", "blue blue"],
    "${c=!{a|b}}${d=!{${c}1|${c}2}}${d} ${c}": ["a1 a", "a2 a", "b1 b", "b2 b"],
    "${c:green} hat": ["green hat"],
    "${c} ${c=red}": ["red "],
    "__outfit(c=red)__": ["red hat and red coat"],
    "${c=!{red|blue}}__outfit__": ["red hat and red coat", "blue hat and blue coat"],
    "__coat__": ["grey coat"],
    "${c=red}__coat__, __other__": ["red coat, black shoes"],
    "${n=colour}__${n}__": ["red", "blue", "green"],
    "__signs__": ["#1", "100%", "$5", "a #2", "b #2"],
    "#1 {a|b} // c, 100%, $5 (x:1.2) [y] a_b http://z": [
        f"#1 {x} // c, 100%, $5 (x:1.2) [y] a_b http://z" for x in "ab"
    ],
    "# the {colour\n{a|b}\n  # and so on\nc": ["a\nc", "b\nc"],
    "{$5|6 %}": ["$5", "6 %"],
    "é {ü|日本}": ["é ü", "é 日本"],
    "a|b": ["a|b"],
}


@pytest.mark.parametrize("text", MEANS)
def test_a_template_means_these_prompts(text: str) -> None:
    # Given a template
    template = Template.parse(text, WILDCARDS)
    # When it is gone through
    found = [prompt for prompt, _ in template.all(100)]
    # Then it means these prompts, in this order, and was counted before
    assert found == MEANS[text]
    assert template.count == len(found)
    # And a second time the same
    assert [prompt for prompt, _ in Template.parse(text, WILDCARDS).all(100)] == found
    # And what is drawn is one of them, with the same choices
    meant = set(template.all(100))
    assert {template.draw(Random(seed)) for seed in range(50)} <= meant


REFUSED: dict[str, str] = {
    "{a|b": "the { at character 1 is never closed",
    "x {a|{b|c}": "the { at character 3 is never closed",
    "a}": "a } closes nothing",
    "{a|b}}": "a } closes nothing",
    "{}": "{} has no options",
    "\\{a\\}": "there are no escapes",
    "{a::b|c}": "'a' before :: is no weight",
    "{-1::a|b}": "'-1' before :: is no weight",
    "{1e3::a|b}": "'1e3' before :: is no weight",
    "{" + "9" * 400 + "::a|b}": "too large",
    "{" + "9" * 5000 + "::a|b}": "too large",
    "{0::a|0::b}": "{..} has no options",
    "{5$$a|b}": "5 of the options of {..} are to be picked, it has 2",
    "{3-5$$a|b}": "3 of the options",
    "{2$$a|a}": "2 of the options of {..} are to be picked, it has 1",
    "{0$$a|b}": "0 of the options",
    "{4$$__colour__}": "4 of the options of __colour__ are to be picked, it has 3",
    "{$$a|b}": "before $$ stands how many",
    "{x$$a|b}": "before $$ stands how many",
    "{1.5$$a|b}": "before $$ stands how many",
    "x$$y {a|b}": "before $$ stands how many",
    "{65$$" + "|".join(map(str, range(70))) + "}": "at most 64",
    "{~a|b}": "~ before options is not taken",
    "{!a|b}": "! before options is not taken",
    "__@colour__": "@ before options is not taken",
    "%{a ... $$ {b|c}}": "%{..} is not taken",
    "__color__": "there is no wildcard __color__",
    "__cats/*__": "there is no wildcard __cats/*__",
    "__../../etc/passwd__": "there is no wildcard",
    "__a": "the __ at character 1 has no other",
    "a__b__c__": "the __ at character 8 has no other",
    "__{colour|coat}__": "a wildcard's name cannot be chosen",
    "__none__": "__none__ has no options",
    "__zero__": "__zero__ has no options",
    "__open__": "in __open__, '{a|b': the { at character 1 is never closed",
    "__loop__": "a wildcard leads back to itself: loop > leads > loop",
    "__**__": "a wildcard leads back to itself: l",
    "${c}": "the variable c is not given",
    "__outfit__": "in __outfit__, '${c} hat and ${c} coat': the variable c is not given",
    "${c=a}${c=b}${c}": "the variable c is given twice",
    "${c=a|b} ${c}": "cannot be read from character 1",
    "${c=${c}}": "the variable c is not given",
    "${c": "the { at character 2 is never closed",
    "{" * 17 + "}" * 17: "more than 16 options lie within each other",
    "{" * 100_000: "at most 10,000",
    "{a|b}" * 2001: "at most 10,000",
    "{a|b\ufdd0}": "a code that no text has",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_what_is_wrong_with_a_template_is_named(text: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        Template.parse(text, WILDCARDS)
    assert caught.value.code == "bad_template"
    assert REFUSED[text] in caught.value.message


def test_a_wildcard_that_is_not_there_is_told_with_one_that_is() -> None:
    with pytest.raises(InvalidJob) as caught:
        Template.parse("__color__", WILDCARDS)
    assert caught.value.hint == "there is __colour__"


NAMED: dict[str, list[str]] = {
    "cat*": ["cat", "cats"],
    "*t": ["cat"],
    "*": ["cat", "cats", "x.y"],
    "cat/*": ["cat/big", "cat/small"],
    "cat/**": ["cat/big", "cat/far/wild", "cat/small"],
    "**": ["cat", "cat/big", "cat/far/wild", "cat/small", "cats", "far/wild", "x.y"],
    "**/wild": ["cat/far/wild", "far/wild"],
    "cat/**/*l*": ["cat/far/wild", "cat/small"],
    "**ll": ["cat/small"],
    "*/*": ["cat/big", "cat/small", "far/wild"],
    "x?y*": [],
    "c*a*t*": ["cat", "cats"],
    "c*t*": ["cat", "cats"],
    "***a**l*": ["cat/far/wild", "cat/small", "far/wild"],
}


@pytest.mark.parametrize("pattern", NAMED)
def test_a_pattern_means_these_wildcards(pattern: str) -> None:
    names = ("cats", "cat", "cat/big", "cat/small", "cat/far/wild", "far/wild", "x.y")
    assert Wildcards(dict.fromkeys(names, ("x",))).matching(pattern) == NAMED[pattern]


def test_a_pattern_of_many_stars_is_looked_up_at_once() -> None:
    # Given a name and patterns which an expression goes back and forth in for hours
    wildcards, began = Wildcards({"a" * 120: ("x",)}), time.monotonic()
    # When, Then
    for pattern in ("a*" * 6 + "b", "**a" * 6 + "b", "a**/" * 6 + "b"):
        with pytest.raises(InvalidJob, match="there is no wildcard"):
            Template.parse(f"__{pattern}__", wildcards)
    assert time.monotonic() - began < 5


def test_the_choices_of_a_prompt_are_its_outermost_options() -> None:
    # Given a template with options in options, a wildcard and a variable of one choice
    template = Template.parse("${c=!{red|blue}}a {big {cat|dog}|${c} hen} and __cat/big__ {2$$ $$x|y}", WILDCARDS)
    # When it is gone through
    found = dict(template.all(1000))
    # Then each prompt comes with the text of each of them, in their order
    assert found["a big cat and old tiger x y"] in [(c, "big cat", "old tiger", "x y") for c in ("red", "blue")]
    assert found["a blue hen and lion y x"] == ("blue", "blue hen", "lion", "y x")
    assert {len(choices) for choices in found.values()} == {4}


# -------------------------------------------------------------------------------------------------------- at random


def drawn(text: str, n: int) -> Counter[str]:
    template, random = Template.parse(text, WILDCARDS), Random(7)
    return Counter(template.draw(random)[0] for _ in range(n))


def test_weights_are_heeded() -> None:
    # When much is drawn, then shares are as the weights say, within five standard deviations
    assert drawn("{3::a|b|0::c}", 10_000)["a"] == pytest.approx(7500, abs=220)
    assert drawn("__colour__", 10_000)["green"] == pytest.approx(2000, abs=200)
    assert drawn("{a|a|b}", 9000)["a"] == pytest.approx(6000, abs=224)
    # And of several that are picked the heavy one is first as often as its weight says, and each is there once
    found = drawn("{2$$8::a|b|c}", 10_000)
    assert found["a,b"] + found["a,c"] == pytest.approx(8000, abs=200)
    assert set(found) == {"a,b", "a,c", "b,a", "b,c", "c,a", "c,b"}
    # And how many are picked is as likely each
    assert drawn("{1-2$$a|b}", 10_000)["a"] == pytest.approx(2500, abs=220)


def test_a_draw_is_the_same_for_good() -> None:
    # Given draws that were written down
    template = Template.parse("a {red|0.5::blue|{dark|light} green} {2$$ and $$x|y|z} __cat/*__", WILDCARDS)
    # When they are made again, then they are the same
    assert [template.draw(Random(seed))[0] for seed in range(4)] == WRITTEN_DOWN


WRITTEN_DOWN = [
    "a dark green y and z young tiger",
    "a dark green y and z lion",
    "a dark green z and y young tiger",
    "a blue y and z lion",
]


def test_a_draw_goes_on_from_a_state() -> None:
    template, random = Template.parse("{a|b|c}{d|e|f}{g|h|i}", WILDCARDS), Random(3)
    template.draw(random)
    again = Random()
    again.setstate(random.getstate())
    assert [template.draw(random) for _ in range(20)] == [template.draw(again) for _ in range(20)]


# --------------------------------------------------------------------------------------------------------- properties

words = st.text("abc xyzé", min_size=1, max_size=4)


def options(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """`{..}` with parts inside, perhaps of several picks and weights."""
    weight = st.sampled_from(["", "", "2::", "0.5::"])
    many = st.lists(st.tuples(weight, inner).map("".join), min_size=2, max_size=4, unique=True)
    picks = st.sampled_from(["", "", "", "1$$", "1-2$$", "0-1$$", "-2$$", "1-2$$ and $$"])
    return st.tuples(picks, many).map(lambda found: "{" + found[0] + "|".join(found[1]) + "}")


parts = st.recursive(
    words | st.sampled_from(["__colour__", "__cat/*__", "${v}", "${w}", "{2$$__colour__}"]),
    lambda inner: options(inner) | st.tuples(inner, inner).map("".join),
    max_leaves=8,
)
templates = parts.map(lambda text: "${v=!{p|q}}${w={r|s}}" + text)


@given(templates)
@settings(max_examples=100, deadline=None)
def test_what_is_counted_is_what_there_is(text: str) -> None:
    template = Template.parse(text, WILDCARDS)
    if template.count <= 20_000:
        assert len(list(template.all(20_000))) == template.count


@given(templates, st.integers(0, 2**64))
@settings(max_examples=100, deadline=None)
def test_what_is_drawn_is_what_there_is_and_equal_seeds_draw_equally(text: str, seed: int) -> None:
    template = Template.parse(text, WILDCARDS)
    found = template.draw(Random(seed))
    assert Template.parse(text, WILDCARDS).draw(Random(seed)) == found
    if template.count <= 5000:
        assert found in set(template.all(5000))


@given(templates | st.text("{}|$:_~=() ab1", max_size=30))
@settings(max_examples=200, deadline=None)
def test_pieces_are_parsed_as_the_whole(text: str) -> None:
    # Given a template that the parser takes as a whole, without signs that are kept from it
    text = re.sub(r"(?<!\$)\$(?![${])", "", text.replace("/*", "/big"))
    try:
        whole = parse(text)
    except (ParseBaseException, ValueError):
        return
    # When it is given to it in pieces, where we take it
    with suppress(InvalidJob):
        # Then that makes the same
        wanted = whole.tokens if isinstance(whole, SequenceCommand) else [whole]
        assert command_of(text).tokens == wanted


@given(st.text("{}|$:_#%-~!@=(),*/\\ ab01.\n", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_template_or_is_refused(text: str) -> None:
    with suppress(InvalidJob):
        template = Template.parse(text, WILDCARDS)
        assert template.count >= 1
        template.draw(Random(0))


# -------------------------------------------------------------------------------------------------------------- bombs


def bomb(lines: str, levels: int) -> Wildcards:
    """Wildcards each of which says the next several times."""
    return Wildcards({f"w{n}": (lines.format(n=n + 1),) for n in range(levels)} | {f"w{levels}": ("a", "b")})


@pytest.mark.parametrize(
    ("text", "wildcards", "count"),
    [
        ("{a|b}" * 60, Wildcards(), 2**60),
        ("{a|b}" * 70, Wildcards(), MANY),
        ("{20$$" + "|".join(map(str, range(40))) + "}", Wildcards(), MANY),
        ("{2$$__big__} __big__", Wildcards({"big": tuple(map(str, range(30_000)))}), 30_000 * 29_999 * 30_000),
        ("__w0__", bomb("__w{n}__ __w{n}__", 10), MANY),
    ],
    ids=["2^60", "2^70", "40!", "a large wildcard", "a tower"],
)
def test_a_bomb_is_counted_at_once_and_gone_through_by_nobody(text: str, wildcards: Wildcards, count: int) -> None:
    # Given a short template that means more than can be gone through
    started = time.process_time()
    template = Template.parse(text, wildcards)
    # When it is counted and drawn from, then that is done at once
    assert template.count == count
    assert len({template.draw(Random(seed)) for seed in range(20)}) > 10
    # And it is refused before it is gone through
    with pytest.raises(InvalidJob, match="at most 10,000 are taken") as caught:
        template.all(10_000)
    assert caught.value.code == "bad_template"
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("wildcards", "told"),
    [
        (bomb("__w{n}__ __w{n}__", 20), "more than 100,000 characters and choices"),
        (bomb("{{|}}__w{n}____w{n}__", 20), "more than 100,000 characters and choices"),
        (bomb("__w{n}__", 40), "lie within each other"),
        (bomb("{{x|{{y|__w{n}__}}}}", 15), "lie within each other"),
    ],
    ids=["long", "empty", "deep", "deep in options"],
)
def test_a_tower_of_wildcards_is_refused(wildcards: Wildcards, told: str) -> None:
    # Given wildcards upon wildcards, when one that means too much is read, then it is refused
    with pytest.raises(InvalidJob, match=told):
        Template.parse("__w0__", wildcards)
    # And it is so even where the ones below were read before
    for level in range(len(wildcards.lines) - 1, 0, -1):
        try:
            Template.parse(f"__w{level}__", wildcards)
        except InvalidJob:
            break
    with pytest.raises(InvalidJob, match=told):
        Template.parse("__w0__", wildcards)


def test_variables_do_not_make_a_tower_slow() -> None:
    # Given lines that could say a variable, ten times over each other
    wildcards = bomb("__w{n}__ __w{n}__ ${{c:x}}", 10)
    # When they are read with one, then each is read once
    started = time.process_time()
    assert Template.parse("${c={y|z}}__w0__", wildcards).count == MANY
    assert time.process_time() - started < 5


# ----------------------------------------------------------------------------------------------------------- wildcards


def folder(path: Path, **files: str | bytes) -> Path:
    """A folder with these files; `__` in a name is a slash."""
    for name, data in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_a_folder_of_wildcards_is_read(tmp_path: Path) -> None:
    # Given files as people share them
    data = {
        "colours.txt": "\ufeff# warm\nred\r\n\r\n  blue \nred\n# cold\n#1 green",
        "a__b__deep.txt": "x\u2028y",
        "a__more.yaml": "warm:\n  hot: [red, no, 1990]\n  # nothing\n  1: |\n    two\n    lines\none: alone\nempty:\n",
        "list.yml": "- a\n- text: b\n  weight: 0.5\n- {content: c}\n",
        "some.json": json.dumps({"j": ["a", 1, {"text": "b", "weight": 2}], "k": {"l": ["m"]}}),
        "plain.json": '["p"]',
        "nothing.txt": "# none\n",
        "empty.yaml": "",
        "notes.md": "not this",
        ".hidden__x.txt": "not this",
        "a__.x.txt": "not this",
    }
    found = Wildcards.read(folder(tmp_path, **data))
    # Then their lines have the names that their users write
    assert found.lines == {
        "colours": ("red", "blue"),
        "a/b/deep": ("x\u2028y",),
        "a/warm/hot": ("red", "no", "1990"),
        "a/warm/1": ("two\nlines",),
        "a/one": ("alone",),
        "list": ("a", "0.5::b", "c"),
        "j": ("a", "1", "2::b"),
        "k/l": ("m",),
        "plain": ("p",),
        "nothing": (),
    }
    # And templates say them
    assert next(Template.parse("__a/warm/hot__ {__list__|__j__}", found).all(100))[0] == "red a"
    # And their digest is that of what they say, in whichever files it lies
    other = folder(
        tmp_path / "other", **{key: value for key, value in data.items() if key.endswith("__x.txt") is False}
    )
    assert Wildcards.read(other).digest == Wildcards(dict(reversed(found.lines.items()))).digest
    assert Wildcards({"j": ("b",)}).digest != Wildcards({"j": ("a",)}).digest


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    place = folder(tmp_path / "cards", **{"a.txt": "a"})
    (place / "b.txt").symlink_to(tmp_path / "secret.txt")
    (place / "c").symlink_to(tmp_path)
    assert set(Wildcards.read(place).lines) == {"a"}


BILLION = "a: &a [x, x]\nb: &b [*a, *a]\n"
BAD_FILES: dict[str, tuple[dict[str, str | bytes], str]] = {
    "Latin-1": ({"a.txt": "Käse".encode("latin-1")}, "a.txt: this is not UTF-8"),
    "broken YAML": ({"a.yaml": "a: [b"}, "a.yaml: it cannot be read"),
    "tagged YAML": ({"a.yaml": "!!python/object/apply:os.system [x]: y"}, "a.yaml: it cannot be read"),
    "aliases": ({"a.yaml": BILLION}, "aliases are not taken"),
    "deep YAML": ({"a.yaml": "[" * 100_000}, "within each other"),
    "deep JSON": ({"a.json": "[" * 100_000}, "within each other"),
    "deep mappings": ({"a.json": '{"a":' * 40 + '["x"]' + "}" * 40}, "within each other"),
    "a key twice in YAML": ({"a.yaml": "a: [b]\na: [c]"}, "twice"),
    "a key twice in JSON": ({"a.json": '{"a": ["b"], "a": ["c"]}'}, "twice"),
    "broken JSON": ({"a.json": '{"a": ["b"]'}, "a.json: it cannot be read"),
    "no line": ({"a.json": '{"a": [["b"]]}'}, "is no line"),
    "true": ({"a.json": '{"a": [true]}'}, "is no line"),
    "one word": ({"a.json": '"a"'}, "a list of lines, or a mapping"),
    "two files of a name": ({"a.txt": "x", "b.yaml": "a: [y]"}, "'a' is given by another file"),
    "a large file": ({"a.txt": b"x" * (16 * 2**20 + 1)}, "more than 16 MiB"),
    "large files": ({f"{n}.txt": b"x" * 16 * 2**20 for n in range(5)}, "more than 64 MiB"),
    "many lines": ({f"{n}.txt": "\n".join(map(str, range(510_000))) for n in range(2)}, "more than 1,000,000 lines"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_faulty_file_of_wildcards_is_named(case: str, tmp_path: Path) -> None:
    files, told = BAD_FILES[case]
    with pytest.raises(InvalidJob) as caught:
        Wildcards.read(folder(tmp_path, **files))
    assert caught.value.code == "bad_file"
    assert told in caught.value.message


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidJob, match="there is no such folder"):
        Wildcards.read(tmp_path / "none")


def test_a_template_that_needs_no_parser_needs_no_package() -> None:
    code = """
from farm.dataset.prompts import Template, Wildcards
from farm.errors import Unavailable
print(Template.parse("a cat, 100%", Wildcards()).count)
try:
    Template.parse("{a|b}", Wildcards())
except Unavailable as error:
    print(error.message, "|", error.hint)
"""
    found = without(("dynamicprompts",), code)
    assert found.stdout == "1\ntemplates need dynamicprompts | pip install 'latent-farm[dataset]'\n", found.stderr
