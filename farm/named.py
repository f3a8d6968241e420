"""What may people call what the farm keeps for them?"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]$"
RULE = "2 to 64 of a-z, 0-9, point, dash and underscore, a letter or digit at both ends"
"""The same in words."""


def _named(value: str) -> str:
    if not re.fullmatch(NAME, value):
        raise PydanticCustomError("name", RULE)
    return value


Name = Annotated[str, AfterValidator(_named), Field(json_schema_extra={"pattern": NAME})]
"""A dataset's name, or a saved chain's: part of keys in the store and of file names."""
