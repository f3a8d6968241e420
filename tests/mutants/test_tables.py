"""Does every mutant still fit the code? One whose text is gone proves nothing."""

from __future__ import annotations

from pathlib import Path

from tests.mutants.tables import MUTANTS

ROOT = Path(__file__).parents[2]


def test_each_mutant_breaks_one_place_of_the_code() -> None:
    places = {mutant.name: (ROOT / mutant.file).read_text("utf-8").count(mutant.old) for mutant in MUTANTS}
    assert {name: count for name, count in places.items() if count != 1} == {}


def test_each_mutant_names_tests_that_exist() -> None:
    named = {test.partition("[")[0] for mutant in MUTANTS for test in mutant.tests}
    missing = [
        test for test in named if f"def {test.split('::')[1]}(" not in (ROOT / test.split("::")[0]).read_text("utf-8")
    ]
    assert missing == []


def test_each_mutant_changes_something_under_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert [mutant.name for mutant in MUTANTS if mutant.old == mutant.new or not mutant.tests] == []
