"""DAPO: GRPO with a raised upper clip, a token-level loss, dynamic sampling and soft punishment of overlong responses.

    J = 1 / sum_i T_i  sum_it min(rho_it A_i, clip(rho_it, 1 - 0.2, 1 + 0.28) A_i),   groups with 0 < correct < G only
    r_i <- r_i + overlong(T_i): 0 up to L - cache, falling to -1 at the limit L

Source: Yu et al. 2025, arXiv:2503.14476, section 3. Dynamic sampling draws prompts until the batch holds only mixed
groups: groups with right and wrong answers. All sampled tokens count in the budget, so compare at equal tokens, not at
equal steps. Groups are chosen by correctness, not by the shaped reward, because the length penalty would make groups of
only right answers look mixed. If there are too few mixed groups, other groups fill the batch and do not count in the
loss. Rewards are +1 and -1 in the paper (eq. 7), 1 and 0 in this suite, so that the same length penalty weighs twice as
much here.
"""

from dataclasses import replace

from algos import grpo

ALGORITHM = replace(
    grpo.ALGORITHM,
    defaults=grpo.GRPOConfig(clip_high=0.28, aggregation="token-mean", dynamic_sampling=True),
    idea="GRPO with clip-higher, token-level loss, dynamic sampling, overlong punishment",
    source="arXiv:2503.14476, section 3",
    relative="grpo",
    run={"rewards": {"overlong": 1.0}},  # added to the rewards of the study
)
