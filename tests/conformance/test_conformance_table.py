"""Every algorithm: its entry in the table, its settings in the record, and its page."""

import json
import re
from dataclasses import asdict, fields

from cases import ENTRIES, every, every_default

from algos import ALGORITHMS, FILES, describe
from algos.pieces.settings import from_dict
from algos.training.config import RunConfig


@every_default
def test_settings_survive_the_record(case, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, case.name, case.algorithm)
    defaults = case.algorithm.defaults
    assert from_dict(type(defaults), json.loads(json.dumps(asdict(defaults)))) == defaults
    run = from_dict(RunConfig, {"algorithm": case.name, "seed": 0, **case.algorithm.run})
    again = from_dict(RunConfig, json.loads(json.dumps(run.resolved())))
    assert again.hparams == run.hparams == describe.with_length(defaults, run.max_response_tokens)
    assert again.resolved() == run.resolved()


@every_default
def test_it_says_where_it_comes_from(case):
    entry = case.algorithm
    assert entry.idea and entry.source and len(entry.idea.splitlines()) == 1
    assert entry.relative in ALGORITHMS and entry.relative != case.name
    assert not entry.preset_of or entry.preset_of in ALGORITHMS
    assert set(entry.run) <= {field.name for field in fields(RunConfig)}


def test_the_table_has_every_file_once_and_names_fit_for_folders():
    assert list(ALGORITHMS) == list(FILES) and len(set(FILES.values())) == len(FILES)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in FILES)


SUMS = {  # what the first line of the equation sums over
    "seq-mean-token-mean": "1/B sum_i 1/T_i sum_t ",
    "token-mean": "1/(sum_i T_i) sum_i sum_t ",
    "seq-mean-token-sum": "1/B sum_i sum_t ",
    "seq-mean-token-sum-norm": "1/B sum_i 1/L sum_t ",
}
RANGES = (
    *("is_max", "clip_log", "tau_pos", "tau_neg", "penalty_coef", "max_kl", "dual_clip", "ratio_cap"),
    *("off_policy_threshold", "second_moment", "cov_share", "cov_low", "cov_high", "cov_penalty", "entropy_share"),
    *("power_pos", "decay_pos", "power_neg", "decay_neg", "limit_low", "limit_high"),
)


@every
def test_its_page_shows_aggregation_clip_range_and_what_is_added(case):
    hparams, page = case.hparams, describe.page(case.name, case.algorithm, {**ALGORITHMS, **ENTRIES}, case.hparams)
    lines = describe.equation(case.algorithm, hparams)
    total = "1/B sum_i " if hparams.per_response else SUMS[hparams.aggregation]
    weight = "" if hparams.correction == "none" else "w_i " if hparams.per_response else "w_it "
    assert lines[0].startswith(f"J = {total}{weight}[{case.algorithm.term(hparams)}]")
    assert case.algorithm.idea in page and case.algorithm.source in page and all(line in page for line in lines)
    assert "loss aggregation:" in page and ("    L = 5" in lines) == ("1/L" in lines[0])
    if hasattr(hparams, "clip_low"):
        assert f"{1 - hparams.clip_low:g}, {1 + hparams.clip_high:g})" in lines[0]
        assert re.search(rf"clip low: +{hparams.clip_low}\nclip high: +{hparams.clip_high}\n", page)
    for name in RANGES:
        if getattr(hparams, name, None) is not None:
            assert f"{getattr(hparams, name):g}" in lines[0], name
    if hparams.kl_coef:
        assert f"{hparams.kl_coef:g} " in (lines[0] if hparams.kl_in == "loss" else "\n".join(lines[1:]))
    if hparams.correction != "none":
        assert "mu: the sampler" in "\n".join(lines)
        assert hparams.correction.endswith("truncate") or any(" where " in line for line in lines[1:])
    assert (" H(pi(" in lines[0]) == bool(hparams.entropy_coef)
