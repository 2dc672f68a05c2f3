"""The loop against transformers' own `generate`, and against itself with other batches."""

import random
from typing import Any

import pytest
import torch

from cdpo.config.params import SamplingParams
from cdpo.generate.backend import Item, Sampled
from cdpo.generate.transformers_backend import generate, length_batches

END, PAD = 3, 0


def items(count: int = 20) -> list[Item]:
    draw = random.Random(0)
    return [Item([draw.randrange(7, 60) for _ in range(draw.randrange(3, 20))], at * 7919 + 1) for at in range(count)]


def answers(model: Any, asked: list[Item], batch_size: int, **options: Any) -> list[Any]:
    sampling = SamplingParams(max_new_tokens=30, **options)
    found = dict(generate(model, asked, sampling, end_ids=[END], pad_id=PAD, batch_size=batch_size))
    assert len(found) == len(asked)
    return [found[at] for at in range(len(asked))]


@pytest.fixture
def eager_to_end(model: Any) -> Any:
    """The model with its end token made likelier, so that rows end at different places."""
    bias = torch.zeros(model.config.vocab_size)
    bias[END] = 2.0
    handle = model.lm_head.register_forward_hook(lambda module, given, logits: logits + bias)
    yield model
    handle.remove()


def test_greedy_is_that_of_transformers(eager_to_end):
    asked = items(12)
    ours = answers(eager_to_end, asked, 5, do_sample=False)
    for item, sampled in zip(asked, ours, strict=True):
        prompt = torch.tensor([item.prompt_ids])
        theirs = eager_to_end.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=END,
            pad_token_id=PAD,
        )
        assert sampled.token_ids == theirs[0, prompt.shape[1] :].tolist()


def alike(ours: list[Sampled], theirs: list[Sampled]) -> bool:
    """The same tokens; a batch rounds log-probabilities in its own way."""
    assert [each.logprobs for each in ours] == [pytest.approx(each.logprobs, abs=1e-4) for each in theirs]
    return [each[:2] for each in ours] == [each[:2] for each in theirs]


def test_batch_size_order_and_company_change_nothing(eager_to_end):
    asked = items()
    alone = answers(eager_to_end, asked, 1, top_p=0.95)
    assert {each.finish_reason for each in alone} == {"stop", "length"}
    for batch_size in (5, 32):
        assert alike(answers(eager_to_end, asked, batch_size, top_p=0.95), alone)
    assert alike(answers(eager_to_end, asked[::-1], 5, top_p=0.95), alone[::-1])
    assert alike(answers(eager_to_end, asked[3:9], 4, top_p=0.95), alone[3:9])


def test_each_item_is_drawn_at_its_own_temperature(eager_to_end):
    asked = items()
    heat = [(0.3, 1.0, 2.5)[at % 3] for at in range(len(asked))]
    mixed = answers(eager_to_end, [Item(*item[:2], own) for item, own in zip(asked, heat, strict=True)], 7, top_k=20)
    for temperature in set(heat):
        alone = answers(eager_to_end, asked, 7, top_k=20, temperature=temperature)
        places = [at for at in range(len(asked)) if heat[at] == temperature]
        assert alike([mixed[at] for at in places], [alone[at] for at in places])


@pytest.mark.parametrize("options", [{"do_sample": False}, {"temperature": 0.5, "top_k": 9, "top_p": 0.9}])
def test_logprobs_are_those_of_a_forward_pass(eager_to_end, options):
    asked = items(12)
    for item, sampled in zip(asked, answers(eager_to_end, asked, 5, **options), strict=True):
        with torch.no_grad():
            logits = eager_to_end(torch.tensor([item.prompt_ids + sampled.token_ids])).logits[0]
        theirs = logits.log_softmax(-1)[len(item.prompt_ids) - 1 : -1]
        theirs = theirs.gather(-1, torch.tensor(sampled.token_ids)[:, None])[:, 0]
        assert len(sampled.logprobs) == len(sampled.token_ids)
        torch.testing.assert_close(torch.tensor(sampled.logprobs), theirs, atol=1e-4, rtol=0)


def test_other_seeds_give_other_responses(model):
    asked = items(6)
    again = [Item(item.prompt_ids, item.seed + 1) for item in asked]
    pairs = zip(answers(model, asked, 6), answers(model, again, 6), strict=True)
    assert all(one != other for one, other in pairs)


def test_a_response_stops_at_its_end_token_or_at_the_limit(eager_to_end):
    for sampled in answers(eager_to_end, items(), 7):
        if sampled.finish_reason == "stop":
            assert sampled.token_ids.index(END) == len(sampled.token_ids) - 1
        else:
            assert len(sampled.token_ids) == 30
            assert END not in sampled.token_ids


def test_sampled_tokens_follow_the_models_own_probabilities(model):
    """The first two tokens of one prompt under many seeds, against the exact joint distribution of the model."""
    from scipy import stats

    prompt = [9, 20, 31]
    count = 4000
    sampling = SamplingParams(max_new_tokens=2, top_k=3)
    asked = [Item(prompt, at) for at in range(count)]
    found = generate(model, asked, sampling, end_ids=[], pad_id=PAD, batch_size=500)
    observed: dict[tuple[int, ...], int] = {}
    for _, sampled in found:
        observed[tuple(sampled.token_ids)] = observed.get(tuple(sampled.token_ids), 0) + 1

    def best(ids: list[int]) -> list[tuple[int, float]]:
        with torch.no_grad():
            top = model(torch.tensor([ids])).logits[0, -1].topk(3)
        return list(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))

    expected = {(a, b): p * q * count for a, p in best(prompt) for b, q in best([*prompt, a])}
    assert set(observed) <= set(expected)
    assert stats.chisquare([observed.get(pair, 0) for pair in expected], list(expected.values())).pvalue > 1e-3


def test_known_positions_are_not_answered_again_but_by_whole_batches(model):
    asked = items(10)
    batches = length_batches([len(item.prompt_ids) for item in asked], 4)
    done = {*batches[0], batches[1][0]}
    found = dict(
        generate(model, asked, SamplingParams(max_new_tokens=5), end_ids=[END], pad_id=PAD, batch_size=4, done=done)
    )
    assert set(found) == {*batches[1], *batches[2]}


def test_the_model_is_in_eval_mode_meanwhile_and_left_as_it_was(model):
    model.train()
    try:
        stream = generate(model, items(2), SamplingParams(max_new_tokens=2), end_ids=[], pad_id=PAD, batch_size=2)
        next(stream)
        assert not model.training
        list(stream)
        assert model.training
    finally:
        model.eval()


def test_left_padding_moves_no_position():
    """A model with learned positions, unlike Llama's rotary ones, sees it when padding shifts a prompt."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 60, "n_positions": 64}
    learned = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=END)).eval()
    with torch.no_grad():
        learned.transformer.wpe.weight.normal_(0, 1)
    asked = items(8)
    assert len({len(item.prompt_ids) for item in asked}) > 3
    assert alike(answers(learned, asked, 8), answers(learned, asked, 1))
