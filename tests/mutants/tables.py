"""Which mutants are there?"""

from __future__ import annotations

from tests.mutants import Mutant, api, lua, rules

TABLES = {"lua": lua.MUTANTS, "rules": rules.MUTANTS, "api": api.MUTANTS}
MUTANTS = [mutant for table in TABLES.values() for mutant in table]


def named(name: str) -> Mutant:
    """The one mutant of this name."""
    (found,) = [mutant for mutant in MUTANTS if mutant.name == name]
    return found
