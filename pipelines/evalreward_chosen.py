"""EVALREWARD_CHOSEN: score the dataset's chosen responses to the prompts that are answered.

No user lists it. It is planned in front of the EVALREWARD steps of one dataset and one reward model, which all read the
same scores, whoever answered.

out/chosen.parquet: `split, prompt_id, content` (a hash of prompt and response), `reward` (null where the text does not
fit the reward model); one row per prompt that GEN is asked to answer, in the order of the split.

Scores are appended to ckpt/scores.jsonl, and a step that was killed goes on after the last of them.
"""

from typing import Any, Literal

from cdpo.config.params import Count, ModelLoading
from cdpo.pipeline import Pipeline
from cdpo.step import Step, run_by_hand


class EVALREWARDCHOSENParams(ModelLoading):
    """As GEN has them, `split` and `limit`; the others as EVALREWARD has them."""

    split: Literal["eval", "tune", "train"] = "eval"
    limit: Count | None = None
    reverse: bool = False


PIPELINE = Pipeline(
    name="EVALREWARD_CHOSEN",
    version=1,
    params=EVALREWARDCHOSENParams,
    takes={"data": "data", "reward": "reward"},
    gives="chosen",
    rank=55,
    seeded=False,
    stage=False,
    brought=True,
    by_rows=True,
)


def run(step: Step) -> dict[str, Any]:
    from cdpo.data.prepared import read_split
    from cdpo.generate.responses import choose
    from cdpo.score.chosen import write_chosen
    from cdpo.score.paired import Answered, content, score_responses
    from cdpo.score.scorer import load_scorer

    params = EVALREWARDCHOSENParams(**step.params)
    rows = read_split(step.input("data"), params.split)
    # data of prompts alone has none of them: then there is nothing to be scored, and nothing to be compared with
    rows = [row for at in choose(rows, params.limit) if (row := rows[at])["chosen"]]
    scorer = load_scorer(step, params)
    answered = [Answered(params.split, row["prompt"], (row["chosen"][0]["content"],)) for row in rows]
    # how many may be too long is said of the responses that they are compared with, and judged by EVALREWARD
    found = score_responses(step, scorer, answered, max_dropped=1.0, what="chosen responses")
    if step.shard is not None:
        return {"scored": scorer.scored}
    contents = [content((each.prompt, each.responses[0])) for each in answered]
    rewards = [found[at][0] if at in found else None for at in range(len(rows))]
    ids = [row["prompt_id"] for row in rows]
    write_chosen(step.out, params.split, list(zip(ids, contents, rewards, strict=True)))
    scored = [reward for reward in rewards if reward is not None]
    return {
        "rows": len(rows),
        "scored": scorer.scored,
        "dropped": len(rows) - len(scored),
        **({"reward/chosen": sum(scored) / len(scored)} if scored else {}),
    }


if __name__ == "__main__":
    run_by_hand(run)
