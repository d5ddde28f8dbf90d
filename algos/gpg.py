"""GPG: the policy gradient with the group's mean as baseline, averaged over the groups that have one.

    J = alpha 1 / sum_i T_i  sum_it A_i log pi(y_it),   A_i = r_i - mean of the group

Source: Chu et al. 2025, arXiv:2504.02546, section 3; compared with verl 018f23b (gpg). Groups of equal rewards have no
gradient, but take part in the mean over the batch, so that the step shrinks with their number. GPG's alpha, all
responses over those of mixed groups, takes them out of the mean. Here they are left out of the loss, which corrects by
tokens, not by responses. The paper's variant that samples on until a share of the groups is mixed is dynamic_sampling
with max_rounds above 1. verl's alpha divides by the right responses, not by those of mixed groups.
"""

from dataclasses import replace

from algos import reinforce

ALGORITHM = replace(
    reinforce.ALGORITHM,
    defaults=reinforce.ReinforceConfig(
        baseline="group_mean", aggregation="token-mean", dynamic_sampling=True, max_rounds=1
    ),
    idea="REINFORCE minus the group's mean, averaged over the tokens of groups that hold right and wrong answers",
    source="arXiv:2504.02546, section 3; verl 018f23b, gpg",
    relative="reinforce_group",
)
