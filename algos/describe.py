"""An algorithm's hyperparameters in words: for the record of a run, the report, and `python -m algos describe`."""

from dataclasses import replace

from algos.pieces.advantages import GROUP_SCALES
from algos.pieces.algorithm import Algorithm
from algos.pieces.critic import WithCritic
from algos.pieces.estimator import Estimator, changed
from algos.pieces.ratios import PER_RESPONSE

BASELINES = {
    "none": "none",
    "batch_mean": "mean of the batch",
    "group_mean": "mean of the group, own response included",
    "leave_one_out": "mean of the group's other responses",
    "best_of_others": "best of the group's other responses, for the best one alone",
    "length_weighted": "mean of the group weighted by response length",
    "greedy": "reward of the greedy response",
}
RATIOS = {
    "none": "none",
    "token": "token",
    "sequence": "response (geometric mean over its tokens)",
    "sequence_token": "response (geometric mean over its tokens), gradient of each token's own",
    "product": "response (product over its tokens)",
}
RATIO_FORMULAS = {
    "none": None,
    "token": "rho_it = pi(y_it | x, y_i<t) / pi_old(y_it | x, y_i<t)",
    "sequence": "rho_i = exp(1/T_i sum_t [log pi(y_it) - log pi_old(y_it)])",
    "sequence_token": "rho_it = sg(rho_i) pi(y_it) / sg(pi(y_it)),  rho_i = exp(1/T_i sum_t [log pi - log pi_old])",
    "product": "rho_i = pi(y_i | x) / pi_old(y_i | x)",
}
SUMS = {
    "seq-mean-token-mean": "1/B sum_i 1/T_i sum_t",
    "token-mean": "1/(sum_i T_i) sum_i sum_t",
    "seq-mean-token-sum": "1/B sum_i sum_t",
    "seq-mean-token-sum-norm": "1/B sum_i 1/L sum_t",
}
AGGREGATIONS = {
    "seq-mean-token-mean": "mean over responses of the mean over tokens",
    "token-mean": "mean over the tokens of the optimizer step",
    "seq-mean-token-sum": "mean over responses of the sum over tokens",
}


def estimator(hparams: Estimator) -> dict[str, object]:
    """The choices that the hyperparameters resolve to, in words, for the record."""
    critic = ""
    if isinstance(hparams, WithCritic):
        critic = f"critic ({hparams.critic}), GAE(gamma={hparams.gamma:g}, lambda={hparams.gae_lambda:g})"
    return {
        "advantage_baseline": critic or BASELINES[hparams.baseline],
        "advantage_divisor": _divisor(hparams),
        "ratio_level": RATIOS[hparams.ratio],
        **({} if hparams.ratio == "none" else {"clipped_share": f"of {_unit(hparams)}"}),
        **{name: getattr(hparams, name) for name in ("clip_low", "clip_high") if hasattr(hparams, name)},
        "kl_place": hparams.kl_in if hparams.kl_coef else "none",
        "kl_estimator": hparams.kl_estimator if hparams.kl_coef else "none",
        "kl_direction": hparams.kl_direction if hparams.kl_coef else "none",
        "kl_coef": hparams.kl_coef,
        **_special(hparams),
        "loss_aggregation": _aggregation(hparams),
        "responses_kept": _kept(hparams),
        "off_policy_correction": hparams.correction,
    }


def _unit(hparams: Estimator) -> str:
    """What the shares of an objective are shares of, such as clip_fraction."""
    return "responses" if hparams.ratio in PER_RESPONSE else "tokens"


def _special(hparams: Estimator) -> dict[str, object]:
    """Hyperparameters that most runs leave at their default: only the ones in use."""
    found: dict[str, object] = {}
    if hparams.kl_coef and hparams.kl_importance_weighted:
        found["kl_importance_weighted"] = hparams.kl_importance_weighted
    if hparams.kl_coef and hparams.kl_target is not None:
        found["kl_target"] = hparams.kl_target
    special = ("dual_clip", "ratio_cap", "off_policy_threshold", "drift_coef")
    for name in ("entropy_coef", "target_kl", *special, "whiten_rewards", "value_warmup"):
        if getattr(hparams, name, None):
            found[name] = getattr(hparams, name)
    return found


def _kept(hparams: Estimator) -> str:
    dynamic = ", dynamic sampling" if hparams.dynamic_sampling else ""
    return hparams.keep + dynamic + (", truncated ones masked" if hparams.mask_truncated else "")


def _divisor(hparams: Estimator) -> str:
    kind = "sample" if hparams.std_ddof else "population"
    return {
        "none": "none",
        "group_std": f"{kind} standard deviation of the group + {hparams.std_epsilon:g}",
        "leave_one_out_std": f"{kind} standard deviation of the group's other responses + {hparams.std_epsilon:g}",
        "group_mean": f"mean of the group + {hparams.std_epsilon:g}",
        "batch_std": f"{kind} standard deviation of the batch's rewards + {hparams.std_epsilon:g}",
        "whiten": "standard deviation over the batch's tokens",
        "whiten_minibatch": "standard deviation over the minibatch's tokens",
    }[hparams.scale]


def _aggregation(hparams: Estimator) -> str:
    if hparams.per_response:
        return "mean over responses"
    if hparams.aggregation == "seq-mean-token-sum-norm":
        return f"mean over responses of the sum over tokens / {hparams.aggregation_length or 'max_response_tokens'}"
    return AGGREGATIONS[hparams.aggregation]


def equation(algorithm: Algorithm, hparams: Estimator) -> list[str]:
    """The resolved objective in lines of text: the sum to maximize, the ratio, the advantage, the KL."""
    whole = bool(hparams.per_response)
    total = "1/B sum_i" if whole else SUMS[hparams.aggregation]
    index = "i" if whole else "it"
    weight = "" if hparams.correction == "none" else f"w_{index} "
    objective = f"J = {total} {weight}[{algorithm.term(hparams)}]"
    if hparams.kl_coef and hparams.kl_in == "loss":
        ratio = "rho_it " if hparams.kl_importance_weighted else ""
        objective += f" - {hparams.kl_coef:g} {SUMS[hparams.aggregation]} {ratio}{_kl(hparams)}"
    if hparams.entropy_coef:
        objective += f" + {hparams.entropy_coef:g} {SUMS[hparams.aggregation]} H(pi(. | x, y_i<t))"
    lines = [objective]
    if RATIO_FORMULAS[hparams.ratio] and "rho" in algorithm.term(hparams):
        lines.append(f"    {RATIO_FORMULAS[hparams.ratio]}")
    lines += [f"    {line}" for line in _advantage(algorithm, hparams)]
    if weight:
        kind, how = hparams.correction.split("_")
        v = {
            "token": "pi_old(y_it) / mu(y_it)",
            "sequence": "prod_t pi_old(y_it) / mu(y_it)",
            "geometric": "exp(1/T_i sum_t [log pi_old(y_it) - log mu(y_it)])",
        }[kind]
        kept = "1" if kind == "geometric" else "v"
        cut = (
            f"min(v, {hparams.correction_high:g})"
            if how == "truncate"
            else f"{kept} where {hparams.correction_low:g} <= v <= {hparams.correction_high:g}, else 0"
        )
        lines.append(f"    w = {cut},  v = {v},  mu: the sampler; no gradient")
    if "L sum" in total:
        lines.append(f"    L = {hparams.aggregation_length or 'max_response_tokens'}")
    if hparams.dynamic_sampling:
        rounds = "of one round" if hparams.max_rounds == 1 else f"sampled in up to {hparams.max_rounds} rounds"
        lines.append(f"    i over groups with right and wrong answers, {rounds}")
    if hparams.keep == "correct":
        lines.append("    i over correct responses")
    if hparams.mask_truncated:
        lines.append("    i over responses that end before the length limit")
    if hparams.kl_coef and hparams.kl_target is not None:
        lines.append(
            f"    {hparams.kl_coef:g} is kl_coef at the start; after each batch it is multiplied by 1 + clip(KL / "
            f"{hparams.kl_target:g} - 1, -0.2, 0.2) B / {hparams.kl_horizon}"
        )
    if hparams.target_kl is not None:
        lines.append(f"    a batch's updates end once KL(old || new) exceeds 1.5 x {hparams.target_kl:g}")
    return lines


def _kl(hparams: Estimator) -> str:
    u = "u = log pi_ref(y_it) - log pi(y_it)"
    return {
        "k1": "(log pi(y_it) - log pi_ref(y_it))",
        "k2": f"u^2/2, {u}",
        "k3": f"(exp(u) - 1 - u), {u}",
        "k3+": f"(exp(u) - 1 - u) with the gradient of u^2/2, {u}",
        "full": "KL(pi || pi_ref)" if hparams.kl_direction == "reverse" else "KL(pi_ref || pi)",
    }[hparams.kl_estimator]


def _advantage_by_critic(hparams: WithCritic, penalized: bool) -> list[str]:
    penalty = f" - {hparams.kl_coef:g} {_kl(hparams)}" if penalized else ""
    lines = [
        f"A_it = sum_k ({hparams.gamma:g} x {hparams.gae_lambda:g})^k delta_i,t+k,"
        f"  delta_it = r_it + {hparams.gamma:g} V_i,t+1 - V_it",
        f"r_it = [t last] r_i{penalty}",
    ]
    target = hparams.gae_lambda if hparams.gae_lambda_critic is None else hparams.gae_lambda_critic
    error = "(V - R)^2"
    if hparams.value_clip is not None:
        error = f"max((V - R)^2, (V_old + clip(V - V_old, -{hparams.value_clip:g}, {hparams.value_clip:g}) - R)^2)"
    lines.append(f"critic: {hparams.value_coef:g} x 1/2 mean_it {error},  R = A + V_old with lambda {target:g}")
    if hparams.whiten_rewards:
        lines.append("r <- r / std, its mean kept, over the tokens of the rollout batch")
    return lines if hparams.scale == "none" else [*lines, _whitened(hparams)]


def _advantage(algorithm: Algorithm, hparams: Estimator) -> list[str]:
    penalized = bool(hparams.kl_coef) and hparams.kl_in == "reward"
    if algorithm.advantages is not Algorithm.advantages:
        return ["A = " + (algorithm.advantages.__doc__ or "").strip().splitlines()[0].partition(":")[0]]
    if isinstance(hparams, WithCritic):
        return _advantage_by_critic(hparams, penalized)
    lines = []
    if penalized and hparams.credit == "response":
        lines.append(f"r_i <- r_i - {hparams.kl_coef:g} sum_t {_kl(hparams)}")
    baseline = {
        "none": "",
        "batch_mean": " - mean of the batch",
        "group_mean": " - mean_j in group r_j",
        "leave_one_out": " - mean_j in group, j != i r_j",
        "best_of_others": " - max_j in group, j != i r_j where that is above 0, else 0",
        "length_weighted": " - sum_j T_j r_j / sum_j T_j over the group",
        "greedy": " - r(greedy response)",
    }[hparams.baseline]
    divided = hparams.scale in (*GROUP_SCALES, "batch_std")
    line = f"A_i = (r_i{baseline}) / ({_divisor(hparams)})" if divided else f"A_i = r_i{baseline}"
    if penalized and hparams.credit == "token":
        line += f";  A_it = A_i - {hparams.kl_coef:g} sum_k>=t {_kl(hparams).replace('_it', '_ik')}"
    lines.append(line)
    if hparams.scale == "leave_one_out_std":
        lines.append("(not divided where the others do not vary)")
    if hparams.scale == "group_mean":
        lines.append("A_i = 0 where the mean of the group is not above 0")
    return lines if not hparams.scale.startswith("whiten") else [*lines, _whitened(hparams)]


def _whitened(hparams: Estimator) -> str:
    where = "minibatch" if hparams.scale == "whiten_minibatch" else "rollout batch"
    return f"A <- (A - mean) / std over the tokens of the {where}"


def page(
    name: str,
    algorithm: Algorithm,
    algorithms: dict,
    hparams: Estimator | None = None,
    loop: dict | None = None,
    warnings: list[str] | None = None,
) -> str:
    """Everything about an algorithm or a run of it: idea, source, equation, choices, differences from its paper.

    loop, warnings: those of a run, as far as they are known.
    """
    hparams = hparams or algorithm.defaults
    loop = {**_old_policy(hparams), **algorithm.run, **(loop or {})}
    lines = [f"{name}: {algorithm.idea}", f"source: {algorithm.source}", "", *equation(algorithm, hparams), ""]
    lines += [f"{key.replace('_', ' ') + ':':<26}{value}" for key, value in estimator(hparams).items()]
    epochs, minibatches = loop.get("epochs", "the study's"), loop.get("minibatches", "the study's")
    lines.append(f"{'epochs x minibatches:':<26}{epochs} x {minibatches}")
    for key, value in loop.items():
        if key not in ("epochs", "minibatches"):
            lines.append(f"{key.replace('_', ' ') + ':':<26}{value}")
    paper = algorithms.get(algorithm.preset_of or name, algorithm)
    lines += ["", *_differences(f"changed from {algorithm.preset_of or 'the defaults'}", hparams, paper.defaults)]
    if algorithm.relative and algorithm.relative != algorithm.preset_of:
        relative = algorithms[algorithm.relative]
        lines += _differences(f"differs from its nearest relative, {algorithm.relative}", hparams, relative.defaults)
        if algorithm.objective is not relative.objective:
            lines.append(f"  objective: {relative.term(relative.defaults)} -> {algorithm.term(hparams)}")
    lines += [f"note: {note}" for note in algorithm.notes]
    steps = loop.get("epochs", 1) * loop.get("minibatches", 2)
    lines += [f"warning: {warning}" for warning in (hparams.warnings(steps) if warnings is None else warnings)]
    return "\n".join(lines)


def _old_policy(hparams: Estimator) -> dict[str, str]:
    """What pi_old is, as long as no run says it."""
    if hparams.correction != "none":
        return {
            "old_policy": "the policy before the update; samples of sync_every above 1 need old_logprobs: recomputed"
        }
    if hparams.ratio == "none":
        return {}
    return {"old_policy": "the policy that sampled, or with old_logprobs: recomputed that before the update"}


def _differences(title: str, hparams: Estimator, base: Estimator) -> list[str]:
    pairs = changed(hparams, base)
    pairs = {k: v for k, v in pairs.items() if None not in v or (hasattr(hparams, k) and hasattr(base, k))}
    if not pairs:
        return [f"{title}: nothing"]
    return [f"{title}:"] + [f"  {key}: {there} -> {here}" for key, (there, here) in pairs.items()]


def with_length(hparams: Estimator, max_response_tokens: int) -> Estimator:
    """The hyperparameters with the constant length of Dr. GRPO's aggregation filled in from the run's length limit."""
    if hparams.aggregation != "seq-mean-token-sum-norm" or hparams.aggregation_length is not None:
        return hparams
    return replace(hparams, aggregation_length=max_response_tokens)
