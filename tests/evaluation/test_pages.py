"""Tables and values in README.md and docs/ are those of the published files, number by number."""

import pandas as pd
import pytest

from evaluation import pages
from evaluation.pages import PROJECT, fill, parse

BLOCKS = [
    pytest.param(marker, text, id=f"{page.name}-{number}")
    for page in pages.pages()
    for number, (marker, text) in enumerate(pages.blocks(page.read_text(encoding="utf-8")))
]
CSV = """stage,mean@8,mean@8_low,mean@8_high,minus_start,minus_start_low,minus_start_high,clip_fraction,generated_tokens
base,0.5,0.4,0.6,,,,,
grpo,0.7125,0.7,0.725,0.2125,0.2,0.225,0.0019,123456.4
gspo,0.7,,,-0.01,,,0.3753,1000
"""
BENCH = """case,quantity,value,low,high
"grpo, trl",mfu,0.5278,,
"grpo, ours",mfu,0.8836,,
grpo,ratio,2.234,2.18,2.3
grpo,rate,12345.6,,
"""
MARKER = "table: results/published/made_up/comparison.csv | stage, mean@8, minus_start, clip_fraction, generated_tokens"
TABLE = """
| stage | mean@8, % | minus its start, points | clipped, % | generated tokens |
| --- | --- | --- | --- | --- |
| base | 50.0 [40.0, 60.0] |  |  |  |
| grpo | 71.2 [70.0, 72.5] | +21.2 [+20.0, +22.5] | 0.19 | 123,456 |
| gspo | 70.0 | -1.0 | 37.53 | 1,000 |
"""


@pytest.mark.parametrize("marker, text", BLOCKS)
def test_a_pages_block_is_that_of_the_published_file(marker, text):
    assert text == parse(marker).text(PROJECT), "stale: run python -m evaluation.pages"


def test_every_marker_has_an_end():
    assert BLOCKS
    for page in pages.pages():
        text = page.read_text(encoding="utf-8")
        markers = sum(text.count(f"<!-- {form}: ") for form in ("table", "value", "count"))
        assert markers == text.count("<!-- end -->") == len(pages.blocks(text)), page.name
        begun = [form for form in ("value", "count") if f"\n<!-- {form}: " in text]
        assert not begun, f"{page.name}: Markdown reads a line as HTML that begins with a comment"


@pytest.fixture
def project(tmp_path):
    """A project with one page and one published study."""
    folder = tmp_path / "results" / "published" / "made_up"
    folder.mkdir(parents=True)
    (folder / "comparison.csv").write_text(CSV)
    (folder / "bench.csv").write_text(BENCH)
    (folder / "power.csv").write_text("questions,3_seeds\n400,4.1937\n")
    (tmp_path / "docs").mkdir()
    return tmp_path


def write_readme(project, marker, text="\nold\n"):
    (project / "README.md").write_text(f"before <!-- {marker} -->{text}<!-- end --> after\n")


@pytest.mark.parametrize(
    "marker, text",
    [
        (MARKER, TABLE),
        ("value: results/published/made_up/comparison.csv | mean@8 | stage = grpo", "71.2 [70.0, 72.5]"),
        ("value: results/published/made_up/comparison.csv | generated_tokens | stage = gspo", "1,000"),
        ("value: results/published/made_up/bench.csv | value | case = grpo, ours | quantity = mfu", "0.884"),
        ("value: results/published/made_up/bench.csv | value | quantity = ratio", "2.23 [2.18, 2.30]"),
        ("value: results/published/made_up/bench.csv | value | quantity = rate", "12,346"),
        ("value: results/published/made_up/power.csv | 3_seeds | questions = 400", "4.2"),
        ("count: results/published/made_up/comparison.csv | stage = grpo, gspo", "2"),
    ],
)
def test_a_block_is_filled_and_then_stays(project, marker, text):
    write_readme(project, marker)
    assert fill(project) == (["README.md"], [])
    assert (project / "README.md").read_text() == f"before <!-- {marker} -->{text}<!-- end --> after\n"
    assert fill(project) == ([], [])


COUNT = "count: results/published/made_up/comparison.csv | stage = grpo, gspo"


def test_a_count_in_a_tables_row_is_one_cell_of_it(project):
    row = f"| claims | <!-- {COUNT.replace('|', chr(92) + '|')} -->?<!-- end --> hold |\n"
    (project / "README.md").write_text(row)
    assert fill(project) == (["README.md"], [])
    assert (project / "README.md").read_text() == row.replace("?", "2")


@pytest.mark.parametrize(
    "before, reason",
    [("| claims | ", r"in the row of a table write \| for |"), ("a\n  ", "a value or count may not begin a line")],
)
def test_a_place_where_markdown_would_hide_a_number_is_refused(project, before, reason):
    (project / "README.md").write_text(f"{before}<!-- {COUNT} -->?<!-- end --> |\n")
    assert fill(project) == ([], [f"README.md: {reason}: {COUNT}"])


def test_rows_are_chosen_by_the_values_of_a_column(project):
    table = parse(f"{MARKER} | stage = gspo, base").text(project)
    assert [line.split(" | ")[0] for line in table.splitlines()[3:]] == ["| base", "| gspo"]


@pytest.mark.parametrize(
    "marker, reason",
    [
        ("table: results/published/none/comparison.csv | stage", "results/published/none/comparison.csv is missing"),
        (MARKER + ", twin", "results/published/made_up/comparison.csv has no column twin"),
        (MARKER + " | kind = rl", "results/published/made_up/comparison.csv has no column kind"),
        (MARKER + " | stage = gsop", "no row has the stage gsop"),
        ("value: results/published/made_up/comparison.csv | mean@8", "a value is of 1 row and 1 column, got 3 and 1"),
    ],
)
def test_a_block_without_its_numbers_keeps_its_text_and_the_command_fails(project, marker, reason, monkeypatch, capsys):
    write_readme(project, marker)
    assert fill(project) == ([], [f"README.md: {reason}: {marker}"])
    assert "\nold\n" in (project / "README.md").read_text()
    monkeypatch.setattr("sys.argv", ["pages"])
    monkeypatch.setattr(pages, "fill", lambda: fill(project))
    with pytest.raises(SystemExit, match="1"):
        pages.main()
    assert capsys.readouterr().err == f"error: README.md: {reason}: {marker}\n"


@pytest.mark.parametrize(
    "seeds, lines",
    [
        ((1, 1), ["| stage | mean@8, % (this seed only) |", "| base | 50.0 [40.0, 60.0] |"]),
        ((1, 3), ["| stage | mean@8, % |", "| base | 50.0 [40.0, 60.0; this seed only] |"]),
    ],
)
def test_that_a_table_is_of_one_seed_is_said_once(seeds, lines):
    frame = pd.DataFrame(
        {"stage": ["base", "ppo"], "seeds": seeds, "mean@8": 0.5, "mean@8_low": 0.4, "mean@8_high": 0.6}
    )
    shown = pages.table(frame, ["stage", "mean@8"]).split("\n")
    assert [shown[1], shown[3]] == lines and ("this seed only" in shown[4]) is False


def test_text_with_a_bar_does_not_split_its_cell(project):
    path = project / "results" / "published" / "made_up" / "pairs.csv"
    path.write_text(
        "stage,against,like,differences,difference,difference_low,difference_high\na,b|c,True,1,0.1,0.0,0.2\n"
    )
    marker = "table: results/published/made_up/pairs.csv | stage, against, differences, difference | like = True"
    assert parse(marker).text(project).splitlines()[3] == "| a | b\\|c | 1 | +10.0 [+0.0, +20.0] |"
