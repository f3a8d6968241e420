"""Would the tests notice if a rule were gone?

Each mutant breaks one rule of the code by hand, in `lua` the scripts of the ledger, in `rules` one rule of the design;
and names the tests that must fail with it. `python -m tests.mutants` breaks one at a time, in a copy.
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
