"""What any text, study or file of rows may do: it is read, or refused in one sentence. Samples of tests/faults/fuzz."""

import json
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.pieces.settings import SettingsError
from algos.training.models.config import ModelConfig
from evaluation.report.page import environment
from evaluation.tasks import answers
from evaluation.tasks.files import read_jsonl
from evaluation.tasks.grader import Grader
from pipelines.study import Study, load
from tests.faults import fuzz

few = settings(max_examples=60, deadline=None, derandomize=True, database=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TEXT = st.lists(st.sampled_from(fuzz.PIECES) | st.text(max_size=6), max_size=12).map("".join)


def refused_or_done(call) -> None:
    try:
        call()
    except SettingsError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("what", ["studies", "responses", "data files"])
def test_a_sample_of_the_fuzzing(what, tmp_path):
    count, make, take = {
        "studies": (60, fuzz.study, fuzz.read_study),
        "responses": (1000, fuzz.response, fuzz.grade),
        "data files": (100, fuzz.data_file, lambda made: fuzz.read_file(made, tmp_path)),
    }[what]
    counts = fuzz.trial(what, count, make, take)
    assert counts["taken"] > 0 and counts["taken"] + counts["refused"] == count


def test_a_crash_is_counted(capsys):
    def take(made):
        raise KeyError(made)

    assert fuzz.trial("numbers", 3, lambda draws: draws.random(), take)["crashes"] == 3
    assert "3 numbers: 3 crashes; 3 crashes" in capsys.readouterr().out


def test_the_mutations_are_a_function_of_the_seed():
    for make in (fuzz.study, fuzz.response, fuzz.data_file):
        first, second = (make(random.Random(5)) for _ in range(2))
        assert str(first) == str(second)


@few
@given(st.dictionaries(st.sampled_from([*fuzz.SMOKE, "x"]), JSON), JSON)
def test_any_mapping_is_a_study_or_is_refused(top, value):
    refused_or_done(lambda: Study({**fuzz.SMOKE, **top}, "x"))
    refused_or_done(lambda: Study({**fuzz.SMOKE, "models": {"base": value}}, "x"))


@few
@given(st.binary(max_size=40) | st.text(alphabet="abc:{}[]&*!-'\"\n #|>?%@`,0", max_size=60).map(str.encode))
def test_any_bytes_are_a_study_file_or_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        load(path)
    assert "\n" not in str(raised.value)


@few
@given(JSON)
def test_any_value_is_a_model_or_is_refused(value):
    from algos.pieces.settings import from_dict

    refused_or_done(lambda: from_dict(ModelConfig, value, "models.x"))


@few
@given(TEXT)
def test_any_response_is_graded(text):
    fuzz.grade(text)


@few
@given(st.fractions(max_denominator=1000), TEXT)
def test_an_answer_in_its_place_is_found_whatever_stands_before_it(number, before):
    """Unless that says an answer itself, asks the next question or opens what hides the answer."""
    before = re.sub(r"[^A-Za-z .,\n]", "", before)
    if re.search("question|problem|human|user|answer|q", before, re.IGNORECASE):
        return
    found = Grader().strict(f"{before}\n#### {number}")
    assert found is not None and Fraction(found) == number and answers.is_correct(found, found)


@few
@given(st.binary(max_size=60))
def test_any_bytes_are_rows_or_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    path.write_bytes(content)
    refused_or_done(lambda: json.dumps(read_jsonl(path)).encode())


@few
@given(TEXT)
def test_the_report_shows_any_text_as_text(text):
    page = environment().from_string("{{ text }}").render(text=text)
    assert not set("<>\"'") & set(page)
    assert (
        page.replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"').replace("&#39;", "'").replace("&amp;", "&")
        == text
    )
