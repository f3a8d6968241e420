"""Would the tests notice if a rule were gone?

Each mutant breaks one rule of the code by hand, in `lua` the scripts of the ledger, in `rules` one rule of the design,
in `api` a guard of the API; and names the tests that must fail with it. `python -m tests.mutants` breaks one at a time,
in a copy.

mutmut breaks the gates (`[tool.mutmut]` in pyproject.toml) by machine: of 1,720 mutants 1,541 were killed, 90 %. Of the
179 that survived, 80 change the wording of an error or a log line whose code and field are tested; the others are

==========  ===  ====================================================================================================
farm.image   24  names that Pillow knows in either case, a size that is the limit itself, PNG's compression level, the
                 pattern for addresses (a file of such a name is refused as well), a conversion to the mode that it has
farm.chain   22  what YAML's loader does by default, one byte read too many, defaults that are always given, how many
                 near names are looked for
farm.bell     6  a pause's length, an address that nothing reads, which errors a closed socket may raise
farm.plan,   22  `strict=` of lists of one length, field names that no recipe has twice, pydantic's dump mode (all
farm.job         fields are JSON's own), a random bit more
workers      25  a header of exactly the least or greatest length, Pillow's names and signs of sizes, what a message
.codec           says of the shape that it found
==========  ===  ====================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One broken rule: in `file`, `old` (which occurs there once) becomes `new`, and one of `tests` has to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
