"""A reward model, or a user's reward function, that is loaded once and asked as often as one likes."""

from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from cdpo.errors import StepError
from cdpo.memory import at_once
from cdpo.score.beaver import ScoreModel, encode_conversations, load_score_model
from cdpo.score.fit import context_length, refuse_unknown_tokens
from cdpo.score.layout import is_score_model
from cdpo.score.reward import Pair, encode_pairs, score, score_by_plugin
from cdpo.train.trainable import pad_apart_from_end

if TYPE_CHECKING:
    from cdpo.step import Step

#: texts that are scored at once where nothing says how many
BATCH = 16
#: above this share of tokens that the reward model's tokenizer has no word for, it reads another language
MOST_UNKNOWN = 0.5


class RewardScorer:
    """Rewards of (prompt, response) pairs; higher is better, a cost model (`reverse`) being negated here and only here.

    A reward depends on its own pair alone, up to rounding (1e-5 in fp32), whatever is scored beside it.
    """

    #: texts that it was asked about
    scored = 0

    def __init__(
        self, model: Any, tokenizer: Any, *, batch_size: int = BATCH, reverse: bool = False, name: str | None = None
    ) -> None:
        """A sequence classifier of transformers' with one label and its tokenizer, which has a chat template; or a
        `cdpo.score.beaver.ScoreModel`, which has a format of its own.

        Raises `StepError` where it has more labels. `batch_size` texts go through the model at once.
        """
        config = model.config.get_text_config()
        self.name = name or str(model.config.name_or_path or "the reward model")
        own_format = isinstance(model, ScoreModel)
        if not own_format and model.config.num_labels != 1:
            raise StepError(f"{self.name} gives {model.config.num_labels} labels; a reward model has one")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if config.pad_token_id is None:
            if not own_format:  # the classifier looks for the text's end by this id
                tokenizer = pad_apart_from_end(tokenizer)
            config.pad_token_id = tokenizer.pad_token_id
        self.batch_size, self.reverse = batch_size, reverse
        #: the most tokens that a prompt and its response may have together; None for a function
        self.context: int | None = context_length(model.config, tokenizer)
        self._model, self._tokenizer = model, tokenizer
        #: tokens that the template writes around a prompt and a response; None before it is asked for
        self._frame: int | None = None
        self._encode = encode_conversations if own_format else encode_pairs
        self._function: Callable[..., Any] | None = None

    @classmethod
    def from_function(
        cls, function: Callable[..., Any], *, batch_size: int = BATCH, reverse: bool = False, name: str | None = None
    ) -> Self:
        """A user's `fn(prompts, responses) -> list[float]`: prompts are messages, responses texts."""
        scorer = cls.__new__(cls)
        scorer.name = name or str(getattr(function, "__name__", "the reward function"))
        scorer.batch_size, scorer.reverse, scorer.context = batch_size, reverse, None
        scorer._model, scorer._tokenizer, scorer._function = None, None, function
        return scorer

    @classmethod
    def load(
        cls,
        step: "Step",
        *,
        role: str = "reward",
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        template: str | None = None,
        reverse: bool = False,
        batch_size: int | None = None,
    ) -> Self:
        """The reward that a step has as its input `role` (with `<role>_adapter`), or as `<role>_plugin`, on its device.

        `dtype`, `attn_implementation` and `template` are the reward model's; `batch_size` is the device's micro-batch
        where None. Raises `StepError` for what is no reward model.
        """
        batch_size = batch_size or step.device.fewer(step.device.micro_batch or BATCH)
        if step.has(f"{role}_plugin"):
            from cdpo.plugins import load_plugin

            reference = str(step.inputs[f"{role}_plugin"])
            return cls.from_function(load_plugin(reference), batch_size=batch_size, reverse=reverse, name=reference)
        from cdpo.models import set_threads, torch_device

        set_threads(step.device)
        adapter = step.input(f"{role}_adapter") if step.has(f"{role}_adapter") else None
        return cls.from_folder(
            step.input(role),
            adapter,
            dtype=dtype,
            attn_implementation=attn_implementation,
            template=template,
            reverse=reverse,
            batch_size=batch_size,
            device=torch_device(step.device),
        )

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        adapter: Path | None = None,
        *,
        device: Any,
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        template: str | None = None,
        reverse: bool = False,
        batch_size: int = BATCH,
    ) -> Self:
        """The reward model of a local folder: a sequence classifier with one label, or a beaver score model."""
        from cdpo.models import load_reward, load_tokenizer, read_tokenizer

        if not (folder / "config.json").exists():
            raise StepError(f"there is no model in {folder}: a reward model is a folder that from_pretrained reads")
        if is_score_model(folder):
            if template is not None or adapter is not None:
                what = "an adapter" if template is None else f"the template {template!r}"
                raise StepError(
                    f"{folder} is a beaver score model, which reads a format of its own: it takes not {what}"
                )
            model: Any = load_score_model(folder, dtype=dtype, attn_implementation=attn_implementation, device=device)
            tokenizer = read_tokenizer(folder)
        else:
            tokenizer = load_tokenizer(folder, adapter, template)
            model = load_reward(folder, adapter, dtype=dtype, attn_implementation=attn_implementation, device=device)
        return cls(model, tokenizer, batch_size=batch_size, reverse=reverse, name=_shown(folder, adapter))

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """The reward of each of `pairs`. Raises `StepError` where one is longer than the context, or spells the token
        that ends a turn (`fits` tells which), and where a reward is no finite number.
        """
        encoded = self.encode(pairs)
        if lost := sum(each is None for each in encoded):
            raise StepError(f"{lost} of {len(pairs)} responses {self.misfit}: {MISFIT_ADVICE}")
        rewards = dict(self.rewards(encoded))
        return [rewards[at] for at in range(len(pairs))]

    def fits(self, pairs: Sequence[Pair]) -> list[bool]:
        """Which of `pairs` can be scored."""
        return [each is not None for each in self.encode(pairs)]

    @property
    def misfit(self) -> str:
        """What is said of responses that cannot be scored."""
        return (
            f"are longer than the reward model's context of {self.context} tokens, or spell the token that ends a turn"
        )

    def encode(self, pairs: Sequence[Pair]) -> list[Any]:
        """What `rewards` takes, one for each of `pairs`; None for what cannot be scored.

        Raises `StepError` where the tokenizer does not belong to the model, or does not know these texts.
        """
        if self._function is not None:
            return list(pairs)
        encoded = self._encode(self._tokenizer, pairs)
        fitting = [ids if ids is not None and len(ids) <= (self.context or 0) else None for ids in encoded]
        kept = [ids for ids in fitting if ids is not None]
        size = self._model.get_input_embeddings().num_embeddings
        refuse_unknown_tokens(size, kept, f"the reward model {self.name}")
        self._refuse_other_words(kept)
        return fitting

    def _refuse_other_words(self, sequences: Sequence[Sequence[int]]) -> None:
        """Raise `StepError` where most tokens are unknown, those that the template itself writes left aside."""
        unknown_id = self._tokenizer.unk_token_id
        if unknown_id is None or not sequences:
            return
        if self._frame is None:
            (empty,) = self._encode(self._tokenizer, [([{"role": "user", "content": ""}], "")])
            self._frame = len(empty or ())
        unknown = sum(list(ids).count(unknown_id) for ids in sequences)
        total = sum(max(0, len(ids) - self._frame) for ids in sequences)
        if unknown > MOST_UNKNOWN * total:
            raise StepError(
                f"the tokenizer of the reward model {self.name} does not know {unknown / max(total, unknown):.0%} of "
                "the tokens of these texts: its vocabulary is not made for them; name another reward model"
            )

    def rewards(self, encoded: Sequence[Any], done: Container[int] = ()) -> Iterator[tuple[int, float]]:
        """(position, reward) of what `encode` gave, batch by batch; batches that are wholly in `done` are passed over.

        Raises `StepError` for a reward that is no finite number.
        """
        if self._function is not None:
            found = score_by_plugin(self._function, self.name, encoded, batch_size=self.batch_size, done=done)
        else:
            pad_id = self._model.config.get_text_config().pad_token_id
            found = score(self._model, encoded, pad_id=pad_id, batch_size=self.batch_size, done=done)
        with at_once(self.batch_size):
            for at, reward in found:
                self.scored += 1
                yield at, -reward if self.reverse else reward


class Loading(Protocol):
    """How a reward model is read, as the parameters of a step that scores have it."""

    @property
    def dtype(self) -> str: ...
    @property
    def attn_implementation(self) -> str: ...
    @property
    def template(self) -> str | None: ...
    @property
    def reverse(self) -> bool: ...


def load_scorer(step: "Step", params: Loading) -> RewardScorer:
    """The input `reward` of a step whose parameters are the reward model's alone; see `RewardScorer.load`."""
    return RewardScorer.load(
        step,
        dtype=params.dtype,
        attn_implementation=params.attn_implementation,
        template=params.template,
        reverse=params.reverse,
    )


#: what may be done about them
MISFIT_ADVICE = "use a reward model with a longer context, or shorter responses"


def _shown(folder: Path, adapter: Path | None) -> str:
    return f"{folder}" if adapter is None else f"{adapter} on {folder}"
