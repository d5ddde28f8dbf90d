"""The smoke study with one value replaced at random is planned, or refused in one line that names the value's place."""

import copy
import random

import pytest
from studies import SMOKE

from algos.pieces.settings import SettingsError
from pipelines.study import Study
from pipelines.tree import tree

VALUES = (None, 3, "x", [], [1], {}, {"a": 1}, True, -1)
STUDIES, PARTS = 320, 4


def places(value: object, place: tuple = ()) -> list[tuple]:
    """The keys down to every value within a value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, part in parts for found in ((*place, key), *places(part, (*place, key)))]


def mutated(place: tuple, value: object) -> dict:
    config = copy.deepcopy(SMOKE)
    section = config
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = copy.deepcopy(value)
    return config


@pytest.mark.parametrize("part", range(PARTS))
def test_a_study_with_one_value_replaced_is_planned_or_refused_in_one_line(part):
    draws = random.Random(0)
    drawn = [(draws.choice(places(SMOKE)), draws.choice(VALUES)) for _ in range(STUDIES)]
    for place, value in drawn[part::PARTS]:
        try:
            study = Study(mutated(place, value), "x")
            assert study.report() and study.warnings is not None and tree(study)
        except SettingsError as error:
            message = str(error)
            assert "\n" not in message and any(str(key) in message for key in place), (place, value, message)
        except Exception as error:
            pytest.fail(f"{place} = {value!r}: {error!r}")
