# (9) Published tables of all studies, exact tools and unit tests -> the ledger of claims. Asked for by name alone.
from pathlib import Path

PUBLISHED = Path("results/published")


rule claims:
    input:
        tables=[str(path) for path in sorted(PUBLISHED.glob("*/*.csv")) if path.parent.name != "claims"],
        rows=[str(path) for path in sorted(Path("evaluation/claims/rows").glob("*.yaml"))],
    output:
        csv="results/published/claims/claims.csv",
        markdown="results/published/claims/claims.md",
    log:
        "results/claims/claims.log",
    benchmark:
        "results/claims/benchmark.tsv"
    resources:
        **SMALL,
    params:
        out=subpath(output.csv, parent=True),
    message:
        "Judge the claims"
    shell:
        "python -m evaluation.claims --out {params.out:q} 2> {log:q}"
