"""Rules and numbers -> verdicts: supported, refuted, cannot tell, not run here."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from evaluation.claims.exact import NUMBERS
from evaluation.claims.ledger import Claim, Difference, Exact, Rule, UnitTests, Value
from evaluation.claims.published import NotRun, Published
from evaluation.collect import COUNTS, LOSSES
from evaluation.findings import in_words
from evaluation.statistics import Interval

SUPPORTED, REFUTED, UNKNOWN, NOT_RUN = "supported", "refuted", "cannot tell", "not run here"
VERDICTS = (SUPPORTED, REFUTED, UNKNOWN, NOT_RUN)
POWER = (1.96 + 0.84) / 1.96  # half a 95 % interval -> a difference that four studies in five would find
Passing = Callable[[str], bool | None]  # of a test's name; None: it cannot be run here


@dataclass(frozen=True)
class Outcome:
    """What can be said of one rule, or of one claim."""

    verdict: str
    evidence: str
    detectable: float = math.nan  # in the metric's unit


def judge_difference(found: Interval, asked: Difference) -> str:
    """By the 95 % interval of stage - against.

    higher     supported: it excludes 0, and the mean is at least the margin; refuted: it excludes the margin
    lower      the same of against - stage
    not worse  supported: all of it is above -margin; refuted: all below 0, and the mean at most -margin / 2
    equal      supported: all of it is within the margin; refuted: it excludes 0, and the mean is margin / 2 away
    """
    mean, low, high, margin = found.mean, found.low, found.high, asked.least
    if found.one_seed or math.isnan(low) or math.isnan(high):
        return UNKNOWN
    if asked.want == "lower":
        mean, low, high = -mean, -high, -low
    if asked.want in ("higher", "lower"):
        good, bad = low > 0 and mean >= margin, high < margin
    elif asked.want == "not worse":
        good, bad = low > -margin, high < 0 and mean <= -margin / 2
    else:
        good, bad = -margin < low and high < margin, found.excludes_zero and abs(mean) >= margin / 2
    return SUPPORTED if good else REFUTED if bad else UNKNOWN


def judge_value(found: Interval, asked: Value | Exact) -> str:
    """Supported if all of the interval is in the range, refuted if none of it is."""
    if found.one_seed or math.isnan(found.mean):
        return UNKNOWN
    low, high = (-math.inf if asked.low is None else asked.low), (math.inf if asked.high is None else asked.high)
    if low <= found.low and found.high <= high:
        return SUPPORTED
    below, above = getattr(asked, "refuted_below", None), getattr(asked, "refuted_above", None)
    out = found.high < (low if below is None else below) or found.low > (high if above is None else above)
    return REFUTED if out else UNKNOWN


def judge_rule(rule: Rule, published: Published, passing: Passing) -> Outcome:
    """The outcome of one rule; tables that are not there make it `not run here`."""
    form = rule.form
    try:
        if isinstance(form, Difference):
            found = published.difference(form)
            what = f"{form.study}, {form.stage} - {form.against}: {in_unit(found, form.metric)}"
            return Outcome(judge_difference(found, form), what + seeds(found), POWER * (found.high - found.low) / 2)
        if isinstance(form, Value):
            found = published.value(form)
            what = f"{form.asked}: {shown(found)}"
            half = (found.high - found.low) / 2
            return Outcome(judge_value(found, form), what + seeds(found), POWER * half if half else math.nan)
        if isinstance(form, Exact):
            words, compute = NUMBERS[form.number]
            number = compute()
            return Outcome(judge_value(Interval(number, number, number), form), f"{words}: {number:.3g}")
        return judge_tests(form, passing)
    except NotRun as reason:
        return Outcome(NOT_RUN, str(reason))


def judge_tests(asked: UnitTests, passing: Passing) -> Outcome:
    results = {name: passing(name) for name in asked.names}
    missing = [name for name, passed in results.items() if passed is None]
    if missing:
        return Outcome(NOT_RUN, f"{', '.join(missing)} did not run")
    failed = [name for name, passed in results.items() if not passed]
    if failed:
        return Outcome(UNKNOWN, f"{', '.join(failed)} failed")
    return Outcome(asked.passing, f"{', '.join(asked.names)} passed")


def judge(claim: Claim, published: Published, passing: Passing) -> Outcome:
    """The outcome of a claim: of all its rules, or of any.

    all: one refuted rule refutes it, and it is supported if all are. any: one supported rule supports it, and it is
    refuted if all are. In between the claim is not run here if one of its rules is not, else nobody can tell.
    """
    if not claim.rules:
        return Outcome(NOT_RUN, f"needs {claim.needs}")
    found = [judge_rule(rule, published, passing) for rule in claim.rules]
    verdicts = [outcome.verdict for outcome in found]
    decisive, otherwise = (REFUTED, SUPPORTED) if claim.combine == "all" else (SUPPORTED, REFUTED)
    if decisive in verdicts:
        verdict = decisive
    elif NOT_RUN in verdicts:
        verdict = NOT_RUN
    else:
        verdict = UNKNOWN if UNKNOWN in verdicts else otherwise
    powers = [outcome.detectable for outcome in found if not math.isnan(outcome.detectable)]
    evidence = "; ".join(dict.fromkeys(outcome.evidence for outcome in found))
    return Outcome(verdict, evidence, max(powers, default=math.nan))


def shown(found: Interval, sign: bool = False) -> str:
    form = "+.3g" if sign else ".3g"
    point = format(found.mean, form)
    return point if found.low == found.high else f"{point} [{found.low:{form}}, {found.high:{form}}]"


def in_unit(found: Interval, metric: str) -> str:
    """A difference with its interval: of shares in points, of counts and losses in their unit."""
    if metric in (*COUNTS, *LOSSES):
        return f"{metric} {shown(found, sign=True)}"
    return f"{metric} {in_words(found, sign=True)} points"


def seeds(found: Interval) -> str:
    return ", one seed" if found.one_seed else ""
