"""Verdicts of all claims from the published tables, the exact tools and the unit tests.

python -m evaluation.claims                    writes results/published/claims/claims.csv and claims.md
python -m evaluation.claims --skip-tests       claims that rest on tests are then not run
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from algos.pieces.settings import refusals
from evaluation.claims.ledger import ROWS, Claim, Difference, UnitTests, read
from evaluation.claims.published import Published
from evaluation.claims.verdicts import NOT_RUN, REFUTED, SUPPORTED, UNKNOWN, VERDICTS, Passing, judge

PROJECT = Path(__file__).parents[2]
PUBLISHED = PROJECT / "results" / "published"


def ledger(claims: list[Claim], published: Published, passing: Passing) -> pd.DataFrame:
    """One row a claim: its verdict, what it rests on, and what would have supported it."""
    rows = []
    for claim in claims:
        outcome = judge(claim, published, passing)
        rows.append(
            {
                "id": claim.id,
                "kind": claim.kind,
                "source": claim.source,
                "claim": claim.claim,
                "verdict": outcome.verdict,
                "evidence": outcome.evidence,
                "detectable": outcome.detectable,
                "supported_if": claim.supported_if,
                "limits": claim.limits,
            }
        )
    return pd.DataFrame(rows)


def run_tests(names: Iterable[str], project: Path = PROJECT) -> dict[str, bool]:
    """Which of the tests pass, all of their parameters; a test that pytest does not find is left out."""
    names = sorted(set(names))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        found = [name for name in names if (project / name.partition("::")[0]).is_file()]
        if not found:
            return {}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *found]
        subprocess.run(command, cwd=project, capture_output=True, check=False)
        cases = list(ElementTree.parse(report).iter("testcase")) if report.is_file() else []
    passed: dict[str, bool] = {}
    for case in cases:
        if case.find("skipped") is not None:
            continue
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '').partition('[')[0]}"
        good = case.find("failure") is None and case.find("error") is None
        passed[name] = passed.get(name, True) and good
    return {name: passed[name] for name in names if name in passed}


def markdown(table: pd.DataFrame, claims: list[Claim]) -> str:
    """The ledger as Markdown, with a line on how many verdicts chance may make."""
    counts = table["verdict"].value_counts()
    said = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS)
    decided = set(table.loc[table["verdict"].isin([SUPPORTED, REFUTED]), "id"])
    chance = sum(c.id in decided and any(isinstance(r.form, Difference) for r in c.rules) for c in claims)
    lines = [
        f"{len(table)} claims: {said}. Of the decided ones {chance} rest on differences between arms, each judged by "
        f"its own 95 % interval: where all arms are equal, about one verdict in twenty is chance.",
        "",
        "| id | source | claim | verdict | evidence | detectable | limits |",
        "| --- | --- | --- | --- | --- | ---: | --- |",
    ]
    for _, row in table.iterrows():
        power = "" if pd.isna(row["detectable"]) or row["verdict"] != UNKNOWN else f"{row['detectable']:.3g}"
        cells = [row["id"], row["source"], row["claim"], row["verdict"], row["evidence"], power, row["limits"]]
        lines.append(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--claims", type=Path, default=ROWS, help="folder of the claims' YAML files; default: the shipped ones"
    )
    parser.add_argument("--published", type=Path, default=PUBLISHED, help="folder of the published tables")
    parser.add_argument("--out", type=Path, help="folder of claims.csv and claims.md; default: claims/ in --published")
    parser.add_argument("--skip-tests", action="store_true", help="run no unit tests")
    args = parser.parse_args(words)
    with refusals():
        claims = read(args.claims)
    asked = [name for c in claims for rule in c.rules if isinstance(rule.form, UnitTests) for name in rule.form.names]
    passed = {} if args.skip_tests else run_tests(asked)
    table = ledger(claims, Published(args.published), passed.get)
    out = args.out or args.published / "claims"
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "claims.csv", index=False, float_format="%.6g")
    (out / "claims.md").write_text(markdown(table, claims), encoding="utf-8")
    decided = int((table["verdict"] != NOT_RUN).sum())
    print(f"{out}: {decided} of {len(table)} claims have a verdict.")


if __name__ == "__main__":
    main()
