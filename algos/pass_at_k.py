"""pass@k: the policy gradient of the best reward among a prompt's k responses; k is the group's size.

    J = 1 / B  sum_i  A_i sum_t log pi(y_it),   A_i = max over the group of r_j - max over the others of r_j

Source: Tang et al. 2025, arXiv:2503.19595, the leave-one-out advantage of the k-sample objective with the maximum;
compared with verl 018f23b (grpo_passk), which may divide by the group's standard deviation, too. A response gets what
the best reward of the group would lose without the response. This is 0 for all but the best response, and 0 for that
one, too, if another response is as good. So the gradient is unbiased for the expected best of k, times 1 / k. With
rewards 0 and 1 it learns only from groups with a single right response.
"""

from dataclasses import replace

from algos import reinforce

ALGORITHM = replace(
    reinforce.ALGORITHM,
    defaults=reinforce.ReinforceConfig(baseline="best_of_others"),
    idea="the policy gradient of the best reward of the group: each response gets what it adds to it",
    source="arXiv:2503.19595; verl 018f23b, grpo_passk",
    relative="rloo",
)
