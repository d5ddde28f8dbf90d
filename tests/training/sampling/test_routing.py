"""router_agreement: 1 for one set of weights, less once a router has changed, and only for mixtures of experts."""

import pytest
import torch
from metrics_page import missing
from tiny import tiny_model, tiny_tokenizer

from algos.training.assemble import Checkpoints, make_run
from algos.training.config import RunConfig
from algos.training.models.packing import Layout, shares_prompts
from algos.training.sampling.routing import RESPONSES, Routing, routers
from algos.training.sampling.sampler import sample
from evaluation.matrix.architectures import build, imported

TOKENIZER = tiny_tokenizer()
PROMPTS = [[5, 9, 17, 4], [11, 6], [8, 3, 30]]
ALL = ["qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss", "phimoe"]


def sampled(name: str, group_size: int = 3, rows_at_once: int = 6) -> Routing:
    model = build(name, TOKENIZER)
    routing = Routing(model)
    sample(model, TOKENIZER, PROMPTS, group_size, 9, 1.0, torch.Generator().manual_seed(0), rows_at_once, routing)
    return routing


@pytest.mark.parametrize("name", ALL)
def test_a_token_goes_to_the_same_experts_in_both_passes(name):
    routing = sampled(name)
    layout = Layout(responses=2, share_prompts=shares_prompts(routing.policy.base_model))
    assert routing.agreement(TOKENIZER.pad_token_id, layout) == {"router_agreement": 1.0}
    assert routing.agreement(TOKENIZER.pad_token_id, layout) == {}  # nothing was sampled since


@pytest.mark.parametrize("group_size", [1, 3, 5, 12])  # some divide the number of the responses that are compared
def test_responses_beside_the_first_ones_may_be_more_and_longer(group_size):
    routing = sampled("qwen3_moe", group_size, rows_at_once=512)
    rows, experts = routing.sampled[-1]
    routing.sampled += [(rows[:0], experts[:, :0])] * 5  # passes in which none of the first responses is left
    assert routing.agreement(TOKENIZER.pad_token_id, Layout()) == {"router_agreement": 1.0}


@torch.no_grad()
def test_a_router_that_has_changed_is_seen():
    routing = sampled("qwen3_moe")
    for router in routing.routers:
        router.weight += 0.3 * torch.randn(router.weight.shape, generator=torch.Generator().manual_seed(1))
    changed = routing.agreement(TOKENIZER.pad_token_id, Layout())["router_agreement"]
    assert 0 < changed < 0.9


@torch.no_grad()
def test_the_share_counts_tokens_and_layers_of_the_first_responses():
    """The last of two layers sends every token to other experts: 1/2. A response's last token is never fed."""
    routing = sampled("qwen3_moe", group_size=2)
    fed = {int(row): 0 for rows, _ in routing.sampled for row in rows}
    for rows, experts in routing.sampled:
        assert experts.shape == (2, len(rows), 2)
        for row in rows.tolist():
            fed[row] += 1
    lengths = routing.rollouts.response_mask.sum(dim=1).tolist()
    assert fed == {row: length - 1 for row, length in enumerate(lengths[:RESPONSES]) if length > 1}
    routing.routers[1].register_forward_hook(lambda router, _, output: (*output[:2], (output[2] + 1) % 4))  # never both
    assert routing.agreement(TOKENIZER.pad_token_id, Layout()) == {"router_agreement": 0.5}


def test_a_model_without_experts_has_no_routers():
    assert routers(tiny_model(TOKENIZER)) == []


@pytest.mark.parametrize("name", ["qwen3_moe", "llama"])
def test_a_run_logs_it_for_mixtures_of_experts_alone(name, tmp_path):
    rows = [{"id": i, "question": "q", "prompt": f"{10**i}+1=", "answer": f"#### {i}"} for i in range(3)]
    config = RunConfig("grpo", 0, prompts_per_step=3, group_size=4, minibatches=1, max_response_tokens=6, device="cpu")
    run = make_run(config, Checkpoints(str(imported(name, TOKENIZER, tmp_path))), rows, torch.device("cpu"))
    steps = [run.step() for _ in range(2)]
    logged = [step.get("router_agreement") for step in steps]
    assert not missing({name for step in steps for name in step})
    assert logged == ([1.0, 1.0] if name == "qwen3_moe" else [None, None])
