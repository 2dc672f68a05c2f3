"""EVALREWARD and EVALREWARD_CHOSEN: rewards of prompt and response, batches, resumption, costs, plug-ins, gold."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from killing import kill_after

from cdpo.data.messages import assistant
from cdpo.data.playground import best, gold, make
from cdpo.data.prepared import read_split, write_split
from cdpo.data.tiny import build_tiny
from cdpo.errors import StepError
from cdpo.generate.responses import choose, read_responses, write_responses
from cdpo.pipelines import evalreward, evalreward_chosen
from cdpo.score.scores import win
from cdpo.step import Device, Step

ROWS = 30


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score") / "policy"
    build_tiny({"kind": "tiny", "seed": 0, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}, folder)
    return folder


def write_reward_model(policy: Path, folder: Path, labels: int = 1) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=labels)
    with torch.no_grad():
        model.score.weight.normal_(0, 1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reward_model(policy_folder, tmp_path_factory.mktemp("score") / "reward")


@pytest.fixture(scope="session")
def answered() -> list[dict[str, Any]]:
    """Responses: every third the best there is, every third the chosen one itself, every third empty."""
    rows = make(0, 0, ROWS, 0)["eval"]
    said = [(best(row["prompt"]), row["chosen"][0]["content"], "")[at % 3] for at, row in enumerate(rows)]
    return [
        {
            "split": "eval",
            "prompt_id": f"{at:016x}",
            "prompt": row["prompt"],
            "chosen": row["chosen"],
            "response": text,
            "prompt_tokens": 1,
            "response_tokens": 1,
            "finish_reason": "stop",
            "seed": at,
        }
        for at, (row, text) in enumerate(zip(rows, said, strict=True))
    ]


@pytest.fixture
def score_step(tmp_path: Path, answered: list[dict[str, Any]], reward_folder: Path) -> Callable[..., Step]:
    """Makes an EVALREWARD step; `rows` in place of the usual responses, `reward` None for no reward model."""

    def make_step(
        name: str,
        rows: list[dict[str, Any]] | None = None,
        reward: str | Path | None = reward_folder,
        plugin: str | None = None,
        micro_batch: int | None = None,
        **params: Any,
    ) -> Step:
        folder = tmp_path / f"{name}-responses"
        folder.mkdir()
        write_responses(folder, rows or answered)
        inputs = {"responses": str(folder)}
        if plugin is not None:
            inputs["reward_plugin"] = plugin
        elif reward is not None:
            inputs["reward"] = str(reward)
        device = Device(micro_batch=micro_batch)
        step = Step("EVALREWARD", "0" * 64, name, params, inputs, None, device, tmp_path / name)
        step.out.mkdir(parents=True)
        described = {name: getattr(step, name) for name in ("pipeline", "key", "name", "params", "inputs", "seed")}
        (step.work / "step.json").write_text(json.dumps({**described, "device": dataclasses.asdict(device)}))
        return step

    return make_step


def with_chosen(step: Step) -> Step:
    """The step with the scores of the chosen responses, made from the same prompts by the same reward."""
    if "chosen" in step.inputs or not {"reward", "reward_plugin"} & step.inputs.keys():
        return step
    data = step.work.with_name(f"{step.name}-data")
    rows = {row["prompt_id"]: row for row in read_responses(step.input("responses"))}.values()
    names = ("prompt_id", "prompt", "chosen")
    write_split(data, "eval", [{**{name: row[name] for name in names}, "rejected": row["chosen"]} for row in rows])
    inputs = {"data": str(data), **{role: step.inputs[role] for role in step.inputs if role.startswith("reward")}}
    params = {name: value for name, value in step.params.items() if name not in ("gold", "max_dropped")}
    work = step.work.with_name(f"{step.name}-chosen")
    (work / "out").mkdir(parents=True)
    made = Step("EVALREWARD_CHOSEN", "1" * 64, step.name, params, inputs, None, step.device, work)
    evalreward_chosen.run(made)
    step.inputs = {**step.inputs, "chosen": str(made.out)}
    return step


def run(step: Step) -> dict[str, Any]:
    return evalreward.run(with_chosen(step))


def journal_lines(work: Path) -> list[bytes]:
    return (work / "ckpt/scores.jsonl").read_bytes().splitlines(keepends=True)


def scores(step: Step) -> pd.DataFrame:
    run(step)
    return pd.read_parquet(step.out / "scores.parquet")


def changed(answered: list[dict[str, Any]], at: int, text: str) -> list[dict[str, Any]]:
    return [{**row, "response": text} if place == at else row for place, row in enumerate(answered)]


def test_a_reward_is_the_models_own_of_prompt_and_response(score_step, answered, reward_folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    table = scores(score_step("plain"))
    assert list(table.columns) == ["split", "prompt_id", "reward_generated", "reward_chosen", "win_chosen"]
    assert table["prompt_id"].tolist() == [row["prompt_id"] for row in answered]
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    for at in (0, 1, 2, 7):
        conversation = [*answered[at]["prompt"], assistant(answered[at]["response"])]
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            reward = model(ids).logits.item()
        assert table["reward_generated"][at] == pytest.approx(reward, abs=1e-5)
    # the chosen response, generated, scores as the chosen one, and ties with it
    assert (table["reward_generated"][1::3] == table["reward_chosen"][1::3]).all()
    assert (table["win_chosen"][1::3] == 0.5).all()


@pytest.mark.fault(18)
def test_a_response_that_changes_alone_changes_its_own_reward(score_step, answered):
    """The released package scored the prompt alone, so that generated and chosen always tied."""
    before = scores(score_step("before"))
    after = scores(score_step("after", changed(answered, 4, "two birds")))
    assert abs(before["reward_generated"][4] - after["reward_generated"][4]) > 1e-3
    others = before.index != 4
    assert after["reward_generated"][others].to_numpy() == pytest.approx(before["reward_generated"][others], abs=1e-5)
    assert after["reward_chosen"].to_numpy() == pytest.approx(before["reward_chosen"].to_numpy(), abs=1e-5)
    assert before["reward_generated"].nunique() > ROWS * 0.9
    assert (before["reward_generated"] != before["reward_chosen"]).sum() >= ROWS * 0.6


@pytest.mark.parametrize("micro_batch", [1, 7, 64])
def test_the_batch_size_changes_nothing(score_step, micro_batch):
    usual = scores(score_step("usual"))
    other = scores(score_step("other", micro_batch=micro_batch))
    for column in ("reward_generated", "reward_chosen"):
        assert other[column].to_numpy() == pytest.approx(usual[column].to_numpy(), abs=1e-5)


@pytest.mark.fault(10)
def test_a_cost_model_is_reversed_everywhere(score_step):
    reward, cost = scores(score_step("reward")), scores(score_step("cost", reverse=True))
    assert (cost["reward_generated"] == -reward["reward_generated"]).all()
    assert (cost["reward_chosen"] == -reward["reward_chosen"]).all()
    decided = reward["win_chosen"] != 0.5
    assert (cost["win_chosen"][decided] == 1 - reward["win_chosen"][decided]).all()


@pytest.mark.fault(21)
def test_wins_and_ties():
    assert (win(2, 1), win(1, 2), win(1, 1)) == (1.0, 0.0, 0.5)


def test_a_step_goes_on_where_it_was_killed(score_step):
    """A real process, and a last line that its writer did not finish."""
    first = score_step("first", micro_batch=4)
    whole = scores(first)
    lines = journal_lines(first.work)
    # every third response is the chosen one, whose score is there
    assert len(lines) == ROWS - ROWS // 3
    step = with_chosen(score_step("second", micro_batch=4))
    kill_after(13, evalreward.run, step)
    journal = step.checkpoints / "scores.jsonl"
    assert journal.read_bytes() == b"".join(lines[:13])
    with open(journal, "ab") as stream:
        stream.write(lines[13][:10])
    pd.testing.assert_frame_equal(scores(step), whole)
    assert journal.read_bytes() == b"".join(lines)


def test_scoring_the_chosen_goes_on_where_it_was_killed(score_step):
    first, step = (with_chosen(score_step(name, micro_batch=4)) for name in ("first", "second"))
    work = Path(str(step.inputs["chosen"])).parent
    lines = journal_lines(work)
    assert len(lines) == ROWS
    (work / "ckpt/scores.jsonl").unlink()
    (work / "out/chosen.parquet").unlink()
    inputs = {"data": str(step.work.with_name("second-data")), "reward": step.inputs["reward"]}
    again = Step("EVALREWARD_CHOSEN", "1" * 64, "second", {}, inputs, None, step.device, work)
    kill_after(11, evalreward_chosen.run, again)
    assert journal_lines(work) == lines[:11]
    summary = evalreward_chosen.run(again)
    # two whole batches of four were done
    assert (summary["rows"], summary["scored"], summary["dropped"]) == (ROWS, ROWS - 8, 0)
    assert journal_lines(work) == lines
    one, other = (pd.read_parquet(Path(str(each.inputs["chosen"])) / "chosen.parquet") for each in (first, step))
    pd.testing.assert_frame_equal(one, other)


@pytest.mark.fault(18)
@pytest.mark.fault(21)
def test_a_chosen_text_that_is_generated_has_its_score_and_ties(score_step, answered):
    """Whatever the score is, and whoever's chosen text it is: it is read, not computed."""
    twins = [{**answered[0], "prompt_id": f"{answered[0]['prompt_id']}.{at}"} for at in (1, 2)]
    twins[0]["response"] = twins[0]["chosen"][0]["content"]
    twins[1]["chosen"] = [assistant("five dogs, one cat")]
    twins[1]["response"] = twins[0]["chosen"][0]["content"]
    rows = [*answered, *twins]
    step = with_chosen(score_step("told", rows=rows))
    path = Path(str(step.inputs["chosen"])) / "chosen.parquet"
    table = pd.read_parquet(path)
    table["reward"] = [100.0 + at for at in range(len(table))]
    # the same text has the same score
    table.loc[table["prompt_id"] == twins[0]["prompt_id"], "reward"] = 100.0
    table.to_parquet(path)
    summary = evalreward.run(step)
    found = pd.read_parquet(step.out / "scores.parquet")
    assert found["reward_chosen"].tolist() == table["reward"].tolist()
    assert (found["reward_generated"][1:ROWS:3] == found["reward_chosen"][1:ROWS:3]).all()
    assert (found["win_chosen"][1:ROWS:3] == 0.5).all()
    assert found["win_chosen"][ROWS] == 0.5
    assert (found["reward_generated"][ROWS + 1], found["win_chosen"][ROWS + 1]) == (100.0, 0.0)
    assert summary["scored"] == len(journal_lines(step.work)) == ROWS - ROWS // 3


def test_scores_of_other_chosen_responses_are_refused(score_step, answered):
    fewer, other = (with_chosen(score_step(name, rows=answered[:-1])) for name in ("fewer", "other"))
    step = score_step("whole")
    step.inputs = {**step.inputs, "chosen": fewer.inputs["chosen"]}
    last = answered[-1]["prompt_id"]
    with pytest.raises(StepError, match=f"has no score for the chosen response to {last} of 'eval'"):
        evalreward.run(step)
    rows = [{**answered[0], "chosen": [assistant("a word of mine")]}, *answered[1:-1]]
    step = score_step("otherwise", rows=rows)
    step.inputs = {**step.inputs, "chosen": other.inputs["chosen"]}
    with pytest.raises(StepError, match=f"has the score of another text .* to {answered[0]['prompt_id']}"):
        evalreward.run(step)
    alone = score_step("alone")
    with pytest.raises(StepError, match="no scores of the chosen responses"):
        evalreward.run(alone)
    # GEN leaves out what is too long for the policy: more scores than responses are no mistake
    step = score_step("some", rows=answered[5:9])
    step.inputs = {**step.inputs, "chosen": fewer.inputs["chosen"]}
    assert evalreward.run(step)["rows"] == 4


def test_a_chosen_response_that_does_not_fit_takes_its_row_along(score_step, answered):
    rows = [{**row, "chosen": [assistant("two " * 600)]} if at == 7 else row for at, row in enumerate(answered)]
    rows[7] = {**rows[7], "response": "two birds"}
    step = score_step("long", rows=rows)
    table = scores(step)
    assert table["reward_generated"].isna().tolist() == table["reward_chosen"].isna().tolist()
    assert table["reward_chosen"].isna().tolist() == [at == 7 for at in range(ROWS)]
    found = pd.read_parquet(Path(str(step.inputs["chosen"])) / "chosen.parquet")
    assert found["reward"].isna().tolist() == [at == 7 for at in range(ROWS)]
    # what is said of it is not scored either
    assert len(journal_lines(step.work)) == sum(
        row["response"] != row["chosen"][0]["content"] for at, row in enumerate(rows) if at != 7
    )
    many = [{**row, "chosen": [assistant("two " * 600)]} if at < 2 else row for at, row in enumerate(answered)]
    step = with_chosen(score_step("many", rows=many))
    assert "2 of 30 chosen responses are longer" in (step.work.with_name("many-chosen") / "events.jsonl").read_text()
    with pytest.raises(StepError, match=r"2 of 30 responses \(or their chosen ones\) .*max_dropped allows 5%"):
        run(step)
    # those of prompts that were not answered do not count
    fewer = score_step("fewer", rows=many[1:])
    fewer.inputs = {**fewer.inputs, "chosen": step.inputs["chosen"]}
    assert run(fewer)["dropped"] == 1


def test_the_chosen_of_the_prompts_that_are_answered_are_scored(score_step, answered):
    """As many as GEN's `limit` says, and the very same."""
    whole = with_chosen(score_step("whole"))
    data = whole.work.with_name("whole-data")
    table = pd.read_parquet(Path(str(whole.inputs["chosen"])) / "chosen.parquet").set_index("prompt_id")
    work = whole.work.with_name("limited")
    (work / "out").mkdir(parents=True)
    inputs = {"data": str(data), "reward": whole.inputs["reward"]}
    limited = Step("EVALREWARD_CHOSEN", "1" * 64, "limited", {"limit": 7}, inputs, None, whole.device, work)
    assert evalreward_chosen.run(limited)["rows"] == 7
    found = pd.read_parquet(work / "out/chosen.parquet")
    rows = read_split(data, "eval")
    assert found["prompt_id"].tolist() == [rows[at]["prompt_id"] for at in choose(rows, 7)]
    for _, row in found.iterrows():
        assert row["reward"] == pytest.approx(table["reward"][row["prompt_id"]], abs=1e-5)


def test_gold_beside_and_without_a_reward_model(score_step, answered):
    both, alone = (
        scores(score_step("both", gold="playground")),
        scores(score_step("alone", reward=None, gold="playground")),
    )
    expected = [gold(row["prompt"], row["response"]) for row in answered]
    for table in (both, alone):
        assert table["gold_generated"].tolist() == expected
        assert table["gold_chosen"].tolist() == [gold(row["prompt"], row["chosen"][0]["content"]) for row in answered]
        assert (table["gold_win_chosen"][1::3] == 0.5).all()
        assert (table["gold_win_chosen"][2::3] <= 0.5).all()
    assert "reward_generated" not in alone
    with pytest.raises(StepError, match="nothing to score with"):
        run(score_step("neither", reward=None))


def test_the_summary_is_the_mean_of_the_columns(score_step):
    step = score_step("summary", gold="playground")
    summary = run(step)
    table = pd.read_parquet(step.out / "scores.parquet")
    assert summary["reward/mean"] == pytest.approx(table["reward_generated"].mean())
    assert summary["gold/winrate/chosen"] == pytest.approx(table["gold_win_chosen"].mean())
    assert (summary["rows"], summary["dropped"]) == (ROWS, 0)


@pytest.mark.fault(21)
def test_of_several_responses_the_mean_counts_and_each_is_told(score_step, answered):
    """Three responses to each of ten prompts; the chosen one, the same for all three, is scored once."""
    several = [
        {**answered[at], **{name: answered[at - at % 3][name] for name in ("prompt_id", "prompt", "chosen")}}
        for at in range(ROWS)
    ]
    # the last of the three is the first one once more
    several = [
        {**row, "sample": at % 3, "response": several[at - 2 if at % 3 == 2 else at]["response"]}
        for at, row in enumerate(several)
    ]
    step = score_step("several", rows=several, gold="playground")
    summary = run(step)
    assert (summary["rows"], summary["responses"]) == (10, 30)
    each = pd.read_parquet(step.out / "samples.parquet")
    assert each["sample"].tolist() == [0, 1, 2] * 10
    one = scores(step)
    assert one["prompt_id"].tolist() == each["prompt_id"].tolist()[::3]
    for column in ("reward_generated", "win_chosen", "gold_generated"):
        means = [each[column][at : at + 3].mean() for at in range(0, ROWS, 3)]
        assert one[column].tolist() == pytest.approx(means)
    assert each["reward_chosen"].tolist()[::3] == each["reward_chosen"].tolist()[1::3] == one["reward_chosen"].tolist()
    texts = {(row["prompt_id"], row["response"]) for row in several if row["response"] != row["chosen"][0]["content"]}
    assert len(journal_lines(step.work)) == summary["scored"] == len(texts) < 30


def test_too_long_rows_are_counted_or_refused_never_cut(score_step, answered):
    """The model reads 512 tokens."""
    one = score_step("one", changed(answered, 4, "two " * 600))
    table = scores(one)
    assert table["reward_generated"].isna().tolist() == [at == 4 for at in range(ROWS)]
    assert table["reward_chosen"].isna().tolist() == [at == 4 for at in range(ROWS)]
    assert "1 of 30" in (one.work / "events.jsonl").read_text()
    two = changed(changed(answered, 4, "two " * 600), 5, "two " * 600)
    with pytest.raises(StepError, match=r"2 of 30 .*512 tokens.*max_dropped allows 5%"):
        run(score_step("two", two))
    assert scores(score_step("allowed", two, max_dropped=0.1))["reward_generated"].isna().sum() == 2


def test_what_is_no_reward_model_is_refused_by_name(score_step, policy_folder, tmp_path):
    with pytest.raises(StepError, match="policy is not a reward model"):
        run(score_step("policy", reward=policy_folder))
    labels = write_reward_model(policy_folder, tmp_path / "labels", labels=3)
    with pytest.raises(StepError, match=r"labels gives 3 labels"):
        run(score_step("labels_", reward=labels))


def test_a_tokenizer_that_does_not_belong_to_the_model_is_refused(score_step, reward_folder, policy_folder, tmp_path):
    import shutil

    from cdpo.data.tiny import build_tiny_for_text

    build_tiny_for_text(["list two birds"] * 5, tmp_path / "bpe", vocab_size=400)
    mixed = tmp_path / "mixed"
    shutil.copytree(reward_folder, mixed)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tmp_path / "bpe" / name, mixed / name)
    with pytest.raises(StepError, match=r"mixed knows \d+ tokens, and its tokenizer gives the token id \d+"):
        run(score_step("mixed_", reward=mixed))


PLUGIN = """
calls = []
def words(prompts, responses):
    calls.append(len(prompts))
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    return [len(response.split()) for response in responses]
def short(prompts, responses):
    return [1.0]
def infinite(prompts, responses):
    return [float("inf")] * len(responses)
def texts(prompts, responses):
    return ["much"] * len(responses)
def broken(prompts, responses):
    return [1 / 0]
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my.py"
    path.write_text(PLUGIN)
    return path


def test_a_users_function_scores(score_step, plugin, answered):
    table = scores(score_step("words", plugin=f"{plugin}:words", micro_batch=8))
    assert table["reward_generated"].tolist() == [len(row["response"].split()) for row in answered]
    assert (table["win_chosen"][1::3] == 0.5).all()
    reverse = scores(score_step("reverse", plugin=f"{plugin}:words", reverse=True))
    assert (reverse["reward_generated"] == -table["reward_generated"]).all()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", "gave 1 rewards for 16 responses"),
        ("infinite", "gave inf"),
        ("texts", "'much' in place of a number"),
        ("broken", "ZeroDivisionError"),
    ],
)
def test_a_users_function_that_gives_no_scores_is_named(score_step, plugin, name, said):
    with pytest.raises(StepError, match=f"my.py:{name} .*{said}"):
        run(score_step(name, plugin=f"{plugin}:{name}"))
