"""Tables in README.md and docs/ are those of the published files, number by number."""

import pytest

from evaluation import pages
from evaluation.pages import PROJECT, Unfilled, UnknownRow, fill, parse

BLOCKS = [
    pytest.param(marker, table, id=f"{page.name}-{number}")
    for page in pages.pages()
    for number, (marker, table) in enumerate(pages.blocks(page.read_text(encoding="utf-8")))
]
CSV = """stage,mean@8,mean@8_low,mean@8_high,minus_start,minus_start_low,minus_start_high,clip_fraction,generated_tokens
base,0.5,0.4,0.6,,,,,
grpo,0.7125,0.7,0.725,0.2125,0.2,0.225,0.0019,123456.4
gspo,0.7,,,-0.01,,,0.3753,1000
"""
MARKER = "results/published/made_up/comparison.csv | stage, mean@8, minus_start, clip_fraction, generated_tokens"
TABLE = """| stage | mean@8, % | minus its start, points | clipped, % | generated tokens |
| --- | --- | --- | --- | --- |
| base | 50.0 [40.0, 60.0] |  |  |  |
| grpo | 71.2 [70.0, 72.5] | +21.2 [+20.0, +22.5] | 0.19 | 123,456 |
| gspo | 70.0 | -1.0 | 37.53 | 1,000 |
"""


@pytest.mark.parametrize("marker, table", BLOCKS)
def test_a_pages_table_is_that_of_the_published_file(marker, table):
    try:
        wanted = parse(marker).table(PROJECT)
    except UnknownRow:
        raise
    except Unfilled as reason:  # the study is not published yet, or with other columns
        pytest.skip(str(reason))
    assert table == wanted, "stale: run python -m evaluation.pages"


def test_every_marker_has_an_end():
    for page in pages.pages():
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- table: ") == text.count("<!-- end -->") == len(pages.blocks(text)), page.name


@pytest.fixture
def project(tmp_path):
    """A project with one page and one published study."""
    folder = tmp_path / "results" / "published" / "made_up"
    folder.mkdir(parents=True)
    (folder / "comparison.csv").write_text(CSV)
    (tmp_path / "docs").mkdir()
    return tmp_path


def write_readme(project, marker, table="old\n"):
    (project / "README.md").write_text(f"before\n<!-- table: {marker} -->\n{table}<!-- end -->\nafter\n")


def test_a_block_is_filled_and_then_stays(project):
    write_readme(project, MARKER)
    assert fill(project) == ["README.md: written."]
    assert (project / "README.md").read_text() == f"before\n<!-- table: {MARKER} -->\n{TABLE}<!-- end -->\nafter\n"
    assert fill(project) == []


def test_rows_are_chosen_by_the_values_of_a_column(project):
    table = parse(f"{MARKER} | stage = gspo, base").table(project)
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| base", "| gspo"]


@pytest.mark.parametrize(
    "marker, reason",
    [
        ("results/published/none/comparison.csv | stage", "results/published/none/comparison.csv is missing"),
        (MARKER + ", twin", "results/published/made_up/comparison.csv has no column twin"),
        (MARKER + " | kind = rl", "results/published/made_up/comparison.csv has no column kind"),
        (MARKER + " | stage = gsop", "no row has the stage gsop"),
    ],
)
def test_a_block_without_its_numbers_keeps_its_table_and_the_reason_is_said(project, marker, reason):
    write_readme(project, marker)
    assert fill(project) == [f"README.md: a table is left as it is: {reason}."]
    assert "\nold\n" in (project / "README.md").read_text()


def test_text_with_a_bar_does_not_split_its_cell(project):
    path = project / "results" / "published" / "made_up" / "pairs.csv"
    path.write_text(
        "stage,against,like,differences,difference,difference_low,difference_high\na,b|c,True,1,0.1,0.0,0.2\n"
    )
    marker = "results/published/made_up/pairs.csv | stage, against, differences, difference | like = True"
    assert parse(marker).table(project).splitlines()[2] == "| a | b\\|c | 1 | +10.0 [+0.0, +20.0] |"
