"""Is what the checker finds told, blurred or refused as the farm's policy says, and never hidden?"""

from __future__ import annotations

import numpy as np
import pytest

from farm.catalog import Catalog
from farm.errors import Failure, StageFailed
from tests.stages.conftest import same, some_image
from workers.adapters import files_of
from workers.safety import TAG, Checker, applied


@pytest.fixture
def prude(family: Catalog) -> Checker:
    """Finds something in every picture."""
    return Checker(files_of(family, family.adapters["tiny-prude"]), "cpu")


@pytest.mark.parametrize("policy", ["tag", "blur", "refuse"])
def test_a_picture_in_which_nothing_is_found_is_handed_on_as_it_is(family: Catalog, policy: str) -> None:
    image = some_image()
    made, tags = applied(policy, Checker(files_of(family, family.adapters["tiny-lax"]), "cpu"), image)
    assert same(made, image)
    assert tags == []


def test_tag_leaves_the_pixels(prude: Checker) -> None:
    made, tags = applied("tag", prude, some_image())
    assert same(made, some_image())
    assert tags == [TAG]


def test_blur_leaves_colours_and_no_detail(prude: Checker) -> None:
    image = some_image(256)
    made, tags = applied("blur", prude, image)
    assert tags == [TAG]
    before, after = np.asarray(image, float), np.asarray(made, float)
    assert np.abs(np.diff(after, axis=0)).max() < np.abs(np.diff(before, axis=0)).max() / 4
    assert np.abs(before.mean((0, 1)) - after.mean((0, 1))).max() < 8


def test_refuse_says_so_and_is_not_tried_again(prude: Checker) -> None:
    with pytest.raises(StageFailed) as caught:
        applied("refuse", prude, some_image())
    assert (caught.value.code, caught.value.failure) == ("unsafe_output", Failure.DETERMINISTIC)
