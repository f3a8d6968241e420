"""The list of error codes is what the code raises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from farm import errors
from farm.errors import CODES, FarmError, FieldError, InvalidJob

ROOT = Path(__file__).parents[1]
SOURCE = "\n".join(
    path.read_text("utf-8")
    for folder in ("farm", "workers")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".lua"} and path.name != "errors.py"
)
CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, FarmError)]
OF_CLASSES = {cls.code: cls.__name__ for cls in CLASSES}


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_is_raised_somewhere(code: str) -> None:
    quoted = re.search(rf"[\"']{code}[\"']", SOURCE)
    raised = code in OF_CLASSES and re.search(rf"raise {OF_CLASSES[code]}\(", SOURCE)
    assert quoted or raised


@pytest.mark.parametrize("code", sorted(set(re.findall(r"code=\"([a-z_]+)\"", SOURCE))))
def test_every_code_that_is_raised_is_listed(code: str) -> None:
    assert code in CODES


def test_every_class_says_what_to_do_and_has_a_listed_code() -> None:
    for code, name in OF_CLASSES.items():
        assert code in CODES
        assert vars(errors)[name].__doc__


def test_an_invalid_job_tells_all_its_fields() -> None:
    error = InvalidJob(errors=(FieldError("a.b", "is wrong", "bad_size"), FieldError("c", "too")))
    assert (error.code, str(error)) == ("bad_size", "a.b: is wrong; c: too")
