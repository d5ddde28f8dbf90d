"""An algorithm's settings in words: for the record of a run, for the report, and for `python -m algos describe`."""

from dataclasses import replace

from algos.pieces.algorithm import Algorithm
from algos.pieces.estimator import Estimator, changed

BASELINES = {
    "none": "none",
    "batch_mean": "mean of the batch",
    "group_mean": "mean of the group, own response included",
    "leave_one_out": "mean of the group's other responses",
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


def estimator(config: Estimator) -> dict[str, object]:
    """The estimator that these settings resolve to, in words, for the record."""
    critic = ""
    if config.has_critic:
        critic = f"critic ({config.critic}), GAE(gamma={config.gamma:g}, lambda={config.gae_lambda:g})"
    return {
        "advantage_baseline": critic or BASELINES[config.baseline],
        "advantage_divisor": _divisor(config),
        "ratio_level": RATIOS[config.ratio],
        **{name: getattr(config, name) for name in ("clip_low", "clip_high") if hasattr(config, name)},
        "kl_place": config.kl_in if config.kl_coef else "none",
        "kl_estimator": config.kl_estimator if config.kl_coef else "none",
        "kl_direction": config.kl_direction if config.kl_coef else "none",
        "kl_coef": config.kl_coef,
        **_special(config),
        "loss_aggregation": _aggregation(config),
        "responses_kept": _kept(config),
        "off_policy_correction": config.correction,
    }


def _special(config: Estimator) -> dict[str, object]:
    """Settings that most runs leave alone, where they are in use."""
    found = {}
    if config.kl_coef:
        found |= {"kl_times_ratio": config.kl_importance_weighted} if config.kl_importance_weighted else {}
        found |= {"kl_target": config.kl_target} if config.kl_target is not None else {}
    for name in ("entropy_coef", "target_kl", "dual_clip", "ratio_cap", "whiten_rewards", "value_warmup"):
        if getattr(config, name, None):
            found[name] = getattr(config, name)
    return found


def _kept(config: Estimator) -> str:
    dynamic = ", dynamic sampling" if config.dynamic_sampling else ""
    return config.keep + dynamic + (", truncated ones masked" if config.mask_truncated else "")


def _divisor(config: Estimator) -> str:
    kind = "sample" if config.std_ddof else "population"
    return {
        "none": "none",
        "group_std": f"{kind} standard deviation of the group + {config.std_epsilon:g}",
        "leave_one_out_std": f"{kind} standard deviation of the group's other responses + {config.std_epsilon:g}",
        "batch_std": f"{kind} standard deviation of the batch's rewards + {config.std_epsilon:g}",
        "whiten": "standard deviation over the batch's tokens",
        "whiten_minibatch": "standard deviation over the minibatch's tokens",
    }[config.scale]


def _aggregation(config: Estimator) -> str:
    if config.per_response:
        return "mean over responses"
    if config.aggregation == "seq-mean-token-sum-norm":
        return f"mean over responses of the sum over tokens / {config.aggregation_length or 'max_response_tokens'}"
    return AGGREGATIONS[config.aggregation]


def equation(algorithm: Algorithm, config: Estimator) -> list[str]:
    """The objective in full, resolved, a line each: what is maximized, the ratio, the advantage, the KL."""
    whole = bool(config.per_response)
    total = "1/B sum_i" if whole else SUMS[config.aggregation]
    index = "i" if whole else "it"
    weight = "" if config.correction == "none" else f"w_{index} "
    objective = f"J = {total} {weight}[{algorithm.term(config)}]"
    if config.kl_coef and config.kl_in == "loss":
        ratio = "rho_it " if config.kl_importance_weighted else ""
        objective += f" - {config.kl_coef:g} {SUMS[config.aggregation]} {ratio}{_kl(config)}"
    if config.entropy_coef:
        objective += f" + {config.entropy_coef:g} {SUMS[config.aggregation]} H(pi(. | x, y_i<t))"
    lines = [objective]
    if RATIO_FORMULAS[config.ratio] and "rho" in algorithm.term(config):
        lines.append(f"    {RATIO_FORMULAS[config.ratio]}")
    lines += [f"    {line}" for line in _advantage(algorithm, config)]
    if weight:
        kind, how = config.correction.split("_")
        w = "pi_old(y_it) / mu(y_it)" if kind == "token" else "prod_t pi_old(y_it) / mu(y_it)"
        cut = (
            f"min(w, {config.correction_high:g})"
            if how == "truncate"
            else f"w where {config.correction_low:g} <= w <= {config.correction_high:g}, else 0"
        )
        lines.append(f"    w = {cut.replace('w', 'v')},  v = {w},  mu: the sampler; no gradient")
    if "L sum" in total:
        lines.append(f"    L = {config.aggregation_length or 'max_response_tokens'}")
    if config.dynamic_sampling:
        lines.append(f"    i over groups with right and wrong answers, sampled in up to {config.max_rounds} rounds")
    if config.keep == "correct":
        lines.append("    i over correct responses")
    if config.mask_truncated:
        lines.append("    i over responses that end before the length limit")
    if config.kl_coef and config.kl_target is not None:
        lines.append(
            f"    {config.kl_coef:g} is kl_coef at the start; after each batch it is multiplied by 1 + clip(KL / "
            f"{config.kl_target:g} - 1, -0.2, 0.2) B / {config.kl_horizon}"
        )
    if config.target_kl is not None:
        lines.append(f"    a batch's updates end once KL(old || new) exceeds 1.5 x {config.target_kl:g}")
    return lines


def _kl(config: Estimator) -> str:
    u = "u = log pi_ref(y_it) - log pi(y_it)"
    return {
        "k1": "(log pi(y_it) - log pi_ref(y_it))",
        "k2": f"u^2/2, {u}",
        "k3": f"(exp(u) - 1 - u), {u}",
        "k3+": f"(exp(u) - 1 - u) with the gradient of u^2/2, {u}",
        "full": "KL(pi || pi_ref)" if config.kl_direction == "reverse" else "KL(pi_ref || pi)",
    }[config.kl_estimator]


def _advantage(algorithm: Algorithm, config: Estimator) -> list[str]:
    penalized = bool(config.kl_coef) and config.kl_in == "reward"
    if algorithm.advantages is not Algorithm.advantages:
        return ["A = " + (algorithm.advantages.__doc__ or "").strip().splitlines()[0].partition(":")[0]]
    if config.has_critic:
        penalty = f" - {config.kl_coef:g} {_kl(config)}" if penalized else ""
        lines = [
            f"A_it = sum_k ({config.gamma:g} x {config.gae_lambda:g})^k delta_i,t+k,"
            f"  delta_it = r_it + {config.gamma:g} V_i,t+1 - V_it",
            f"r_it = [t last] r_i{penalty}",
        ]
        target = config.gae_lambda if config.gae_lambda_critic is None else config.gae_lambda_critic
        error = "(V - R)^2"
        if config.value_clip is not None:
            error = f"max((V - R)^2, (V_old + clip(V - V_old, -{config.value_clip:g}, {config.value_clip:g}) - R)^2)"
        lines.append(f"critic: {config.value_coef:g} x 1/2 mean_it {error},  R = A + V_old with lambda {target:g}")
        if config.whiten_rewards:
            lines.append("r <- r / std, its mean kept, over the tokens of the rollout batch")
        return lines if config.scale == "none" else [*lines, _whitened(config)]
    penalty = []
    if penalized and config.credit == "response":
        penalty = [f"r_i <- r_i - {config.kl_coef:g} sum_t {_kl(config)}"]
    baseline = {
        "none": "",
        "batch_mean": " - mean of the batch",
        "group_mean": " - mean_j in group r_j",
        "leave_one_out": " - mean_j in group, j != i r_j",
        "length_weighted": " - sum_j T_j r_j / sum_j T_j over the group",
        "greedy": " - r(greedy response)",
    }[config.baseline]
    divided = config.scale in ("group_std", "leave_one_out_std", "batch_std")
    line = f"A_i = (r_i{baseline}) / ({_divisor(config)})" if divided else f"A_i = r_i{baseline}"
    if penalized and config.credit == "token":
        line += f";  A_it = A_i - {config.kl_coef:g} sum_k>=t {_kl(config).replace('_it', '_ik')}"
    lines = [*penalty, line]
    if config.scale == "leave_one_out_std":
        lines.append("(not divided where the others do not vary)")
    return lines if not config.scale.startswith("whiten") else [*lines, _whitened(config)]


def _whitened(config: Estimator) -> str:
    where = "minibatch" if config.scale == "whiten_minibatch" else "rollout batch"
    return f"A <- (A - mean) / std over the tokens of the {where}"


def page(
    name: str, algorithm: Algorithm, algorithms: dict, config: Estimator | None = None, loop: dict | None = None
) -> str:
    """Everything about an algorithm or a run of it: idea, source, equation, choices, what differs from its paper's."""
    config = config or algorithm.defaults
    loop = {**algorithm.run, **(loop or {})}
    lines = [f"{name}: {algorithm.idea}", f"source: {algorithm.source}", "", *equation(algorithm, config), ""]
    lines += [f"{key.replace('_', ' ') + ':':<26}{value}" for key, value in estimator(config).items()]
    epochs, minibatches = loop.get("epochs", "the study's"), loop.get("minibatches", "the study's")
    lines.append(f"{'epochs x minibatches:':<26}{epochs} x {minibatches}")
    for key, value in loop.items():
        if key not in ("epochs", "minibatches"):
            lines.append(f"{key.replace('_', ' ') + ':':<26}{value}")
    paper = algorithms.get(algorithm.preset_of or name, algorithm)
    lines += ["", *_differences(f"changed from {algorithm.preset_of or 'the defaults'}", config, paper.defaults)]
    if algorithm.relative and algorithm.relative != algorithm.preset_of:
        relative = algorithms[algorithm.relative]
        lines += _differences(f"differs from its nearest relative, {algorithm.relative}", config, relative.defaults)
        if algorithm.objective is not relative.objective:
            lines.append(f"  objective: {relative.term(relative.defaults)} -> {algorithm.term(config)}")
    lines += [f"note: {note}" for note in algorithm.notes]
    steps = loop.get("epochs", 1) * loop.get("minibatches", 2) if loop else 2
    lines += [f"warning: {warning}" for warning in config.warnings(steps)]
    return "\n".join(lines)


def _differences(title: str, config: Estimator, base: Estimator) -> list[str]:
    pairs = changed(config, base)
    pairs = {k: v for k, v in pairs.items() if None not in v or (hasattr(config, k) and hasattr(base, k))}
    if not pairs:
        return [f"{title}: nothing"]
    return [f"{title}:"] + [f"  {key}: {there} -> {here}" for key, (there, here) in pairs.items()]


def with_length(config: Estimator, max_response_tokens: int) -> Estimator:
    """The constant length of Dr. GRPO's aggregation filled in from the run's length limit."""
    if config.aggregation != "seq-mean-token-sum-norm" or config.aggregation_length is not None:
        return config
    return replace(config, aggregation_length=max_response_tokens)
