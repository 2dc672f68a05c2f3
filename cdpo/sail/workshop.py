"""Responses of the policy, and their rewards. All ranks work together, and each knows all that is made."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from cdpo.config.params import SamplingParams
from cdpo.data.tokens import end_token_id
from cdpo.errors import StepError
from cdpo.generate.backend import Item, Sampled
from cdpo.generate.transformers_backend import generate
from cdpo.memory import at_once
from cdpo.sail.config import SAILConfig
from cdpo.sail.online import Response
from cdpo.sail.vllm_sampler import VLLMSampler, refuse_vllm
from cdpo.score.scorer import RewardScorer
from cdpo.train.batches import Row

#: so many responses, none of which can be rated, are more than bad luck
TRIED = 16


class PolicyWorkshop:
    """Samples from `model` as it is when it is asked, and rates by `scorer` (None where nothing is rated)."""

    def __init__(
        self, model: Any, tokenizer: Any, scorer: RewardScorer | None, args: SAILConfig, accelerator: Any
    ) -> None:
        self.model, self.tokenizer, self.scorer = model, tokenizer, scorer
        self.args, self.accelerator = args, accelerator
        #: responses given to the reward model, and those that it could take
        self.asked = self.rated = 0
        self.sampler: VLLMSampler | None = None
        if args.backend == "vllm":
            refuse_vllm(args)
        self.sampling = SamplingParams(
            temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, max_new_tokens=args.max_new_tokens
        )

    def sample(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Response]:
        """One response of the policy for each prompt."""
        own = range(self.args.process_index, len(prompts), self.args.world_size)
        with torch.no_grad(), self.accelerator.autocast(), at_once(self.args.generation_batch_size):
            made = {
                own[place]: (sampled.token_ids, sampled.finish_reason == "stop")
                for place, sampled in self._sampled([Item(prompts[at], seeds[at]) for at in own])
            }
        everyone = self._of_all_ranks(made)
        return [Response(*everyone[at]) for at in range(len(prompts))]

    def _sampled(self, items: list[Item]) -> Iterator[tuple[int, Sampled]]:
        if self.args.backend == "vllm":
            if self.sampler is None:
                self.sampler = VLLMSampler.of(self.model, self.accelerator.mixed_precision, self.args.vllm_options)
            return self.sampler.generate(self.model, items, self.sampling, end_ids=self.end_ids())
        return generate(
            self.model,
            items,
            self.sampling,
            end_ids=self.end_ids(),
            pad_id=self.tokenizer.pad_token_id,
            batch_size=self.args.generation_batch_size,
        )

    def rate(self, rows: Sequence[Row], responses: Sequence[Response]) -> list[float | None]:
        """The reward of each response to the prompt of its row; None where the reward model cannot take the text.

        Raises StepError where it could take none of the first ones.
        """
        own = range(self.args.process_index, len(rows), self.args.world_size)
        assert self.scorer is not None
        encoded = self.scorer.encode([(_messages(rows[at]["prompt"]), self.text(responses[at])) for at in own])
        fitting = [at for at, each in zip(own, encoded, strict=True) if each is not None]
        rewards = self.scorer.rewards([each for each in encoded if each is not None])
        everyone = self._of_all_ranks({fitting[place]: reward for place, reward in rewards})
        self.asked += len(rows)
        self.rated += len(everyone)
        if not self.rated and self.asked >= TRIED:
            raise StepError(f"none of {self.asked} responses of the policy can be rated: they {self.scorer.misfit}")
        return [everyone.get(at) for at in range(len(rows))]

    def end_ids(self) -> list[int]:
        """The tokens that end a response: EOS, and the chat template's end of a turn where there is a template."""
        ids = {self.tokenizer.eos_token_id} - {None}
        if self.tokenizer.chat_template:
            ids.add(end_token_id(self.tokenizer))
        return sorted(ids)

    def text(self, response: Response) -> str:
        """A response as a reward model reads it: no end token or other special tokens, no white space around it."""
        ids = response.token_ids[:-1] if response.ended else response.token_ids
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def _of_all_ranks(self, made: dict[int, Any]) -> dict[int, Any]:
        return dict(gather_object(list(made.items()))) if self.args.world_size > 1 else made


def reward_scorer(model: Any, tokenizer: Any, reverse: bool, args: SAILConfig) -> RewardScorer | None:
    """The reward model as SAILTrainer is given it (a model, its folder, a function), on the policy's device."""
    if model is None or isinstance(model, RewardScorer):
        return model
    batch_size = args.generation_batch_size
    if callable(model) and not isinstance(model, torch.nn.Module):
        return RewardScorer.from_function(model, batch_size=batch_size, reverse=reverse)
    if isinstance(model, str | Path):
        return RewardScorer.from_folder(Path(model), device=args.device, batch_size=batch_size, reverse=reverse)
    if tokenizer is None:
        raise ValueError("a reward model reads texts by its own tokenizer: give `reward_processing_class`")
    return RewardScorer(model.to(args.device).eval(), tokenizer, batch_size=batch_size, reverse=reverse)


def _messages(prompt: Any) -> Any:
    """A prompt as messages; TRL's standard format gives text, which is what a user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
