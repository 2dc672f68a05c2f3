"""EVALREWARD: score responses, and the dataset's chosen ones beside them; a reward reads prompt and response.

out/scores.parquet: `split, prompt_id, reward_generated, reward_chosen, win_chosen`, and `gold_generated, gold_chosen,
gold_win_chosen` where the dataset has a gold reward; one row per prompt in the order of GEN's. A win is 1, a tie 0.5.

The reward is a sequence-classification model with one output (`reward`, `reward_adapter`), or a user's function
(`reward_plugin`). Scores are appended to ckpt/scores.jsonl, and a step that was killed goes on after the last of them.
"""

from collections.abc import Iterator
from typing import Any, Literal

from cdpo.config.params import Fraction, ModelLoading
from cdpo.pipeline import Pipeline
from cdpo.step import Step, run_by_hand

#: texts that are scored at once where devices.yaml says nothing
BATCH = 16


class EVALREWARDParams(ModelLoading):
    """How responses are scored. `dtype`, `attn_implementation` and `template` are the reward model's."""

    reverse: bool = False
    """True for a cost model, whose high values are bad: its scores are negated."""
    gold: Literal["playground"] | None = None
    """The reward known in closed form that is reported beside (or without) the learned one."""
    max_dropped: Fraction = 0.05
    """The share of rows that may be too long for the reward model before the step is refused."""


PIPELINE = Pipeline(
    name="EVALREWARD",
    version=1,
    params=EVALREWARDParams,
    takes={"responses": "responses", "reward": "reward"},
    gives="scores",
    rank=60,
    seeded=False,
    metrics={
        "reward/mean": "reward_generated",
        "reward/chosen": "reward_chosen",
        "winrate/chosen": "win_chosen",
        "gold/mean": "gold_generated",
        "gold/chosen": "gold_chosen",
        "gold/winrate/chosen": "gold_win_chosen",
    },
)


def run(step: Step) -> dict[str, Any]:
    from cdpo.data.playground import gold
    from cdpo.errors import StepError
    from cdpo.generate.responses import read_responses
    from cdpo.score.scores import add_scores, write_scores

    params = EVALREWARDParams(**step.params)
    responses = read_responses(step.input("responses"))
    learned = step.has("reward") or step.has("reward_plugin")
    if not learned and params.gold is None:
        raise StepError("nothing to score with: name a reward model, or `gold: playground`")

    rows = [{"split": each["split"], "prompt_id": each["prompt_id"]} for each in responses]
    dropped = 0
    if learned:
        rewards = _rewards(step, params, responses)
        add_scores(rows, "reward", "win_chosen", rewards)
        dropped = len(rows) - len(rewards)
    if params.gold is not None:
        exact = {
            at: (gold(each["prompt"], each["response"]), gold(each["prompt"], each["chosen"][0]["content"]))
            for at, each in enumerate(responses)
        }
        add_scores(rows, "gold", "gold_win_chosen", exact)
    write_scores(step.out, rows)
    means = {
        name: sum(values) / len(values)
        for name, column in PIPELINE.metrics.items()
        if (values := [row[column] for row in rows if row.get(column) is not None])
    }
    return {"rows": len(rows), "dropped": dropped, **means}


def _rewards(step: Step, params: EVALREWARDParams, responses: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """(reward of the generated response, reward of the chosen one) by row, for the rows that fit the reward model."""
    from cdpo.journal import Journal, item_key

    # Both texts of row r stand beside each other, at 2r and 2r + 1, and are scored alike.
    pairs = [(each["prompt"], text) for each in responses for text in (each["response"], each["chosen"][0]["content"])]
    places, score = _scorer(step, params, pairs)
    keys = {at: item_key(responses[at // 2]["split"], at, *pairs[at]) for at in places}
    with Journal.of(step, "scores.jsonl") as journal:
        done = {place for place, at in enumerate(places) if keys[at] in journal}
        if done:
            step.note(f"going on after {len(done)} of {len(places)} scores")
        step.progress(len(done), len(places), unit="scores")
        for place, reward in score(done):
            if place not in done:
                journal.append(keys[places[place]], -reward if params.reverse else reward)
                done.add(place)
                step.progress(len(done), len(places), unit="scores")
        found = {at: journal.items[keys[at]] for at in places}
    # The same text has the same reward, whatever the two batches rounded it to: it ties with itself.
    return {
        at // 2: (found[at + 1] if pairs[at] == pairs[at + 1] else found[at], found[at + 1])
        for at in places
        if at % 2 == 0
    }


def _scorer(step: Step, params: EVALREWARDParams, pairs: list[Any]) -> tuple[list[int], Any]:
    """Which of `pairs` can be scored, and `score(done) -> iterator of (place among these, raw reward)`."""
    from cdpo.score.reward import score, score_by_plugin

    batch_size = step.device.micro_batch or BATCH
    if step.has("reward_plugin"):
        from cdpo.plugins import load_plugin

        name = step.inputs["reward_plugin"]
        assert isinstance(name, str)
        function = load_plugin(name)

        def by_plugin(done: set[int]) -> Iterator[tuple[int, float]]:
            return score_by_plugin(function, name, pairs, batch_size=batch_size, done=done)

        return list(range(len(pairs))), by_plugin

    from cdpo.models import load_reward, load_tokenizer, set_threads, torch_device
    from cdpo.score.fit import context_length, refuse_unknown_tokens, report_dropped
    from cdpo.score.reward import encode_pairs

    set_threads(step.device)
    folder = step.input("reward")
    adapter = step.input("reward_adapter") if step.has("reward_adapter") else None
    tokenizer = load_tokenizer(folder, adapter, params.template)
    model = load_reward(
        folder,
        adapter,
        dtype=params.dtype,
        attn_implementation=params.attn_implementation,
        device=torch_device(step.device),
    )
    encoded = encode_pairs(tokenizer, pairs)
    # A row is compared with its chosen response, so it stays or goes as a whole.
    most = context_length(model, tokenizer)
    fits = [ids is not None and len(ids) <= most for ids in encoded]
    places = [at for at in range(len(pairs)) if fits[at - at % 2] and fits[at - at % 2 + 1]]
    report_dropped(
        step,
        dropped=(len(pairs) - len(places)) // 2,
        total=len(pairs) // 2,
        allowed=params.max_dropped,
        what=f"responses (or their chosen ones) are longer than the reward model's context of {most} tokens, "
        "or spell the token that ends a turn",
        advice="use a reward model with a longer context, or shorter responses",
    )
    sequences = [encoded[at] or [] for at in places]
    refuse_unknown_tokens(model, sequences, f"the reward model {folder}")

    def by_model(done: set[int]) -> Iterator[tuple[int, float]]:
        pad_id = model.config.get_text_config().pad_token_id  # the model looks for the text's end by this id
        return score(model, sequences, pad_id=pad_id, batch_size=batch_size, done=done)

    return places, by_model


if __name__ == "__main__":
    run_by_hand(run)
