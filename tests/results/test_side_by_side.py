"""Two runs side by side, from a store made by hand: numbers against scipy, by counting, and against cdpo compare."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cdpo.generate.responses import write_responses
from cdpo.report import texts
from cdpo.report.by_prompt import FILTERS, Judging, by_prompt, judgings, of_seed, seeds, verdict_steps
from cdpo.report.collect import compare
from cdpo.report.side_by_side import (
    configurations,
    differences,
    first_two,
    in_words,
    listed,
    read,
    what_differs,
)
from cdpo.score.scores import write_scores
from cdpo.stats.paired import Column
from cdpo.store import Store
from tests.results.made import PROMPTS, finish, key, record

RNG = np.random.default_rng(1)
REWARD = {(name, seed): RNG.normal(size=len(PROMPTS)) for name in ("SFT", "DPO") for seed in (0, 1)}
#: by prompt, what the judge said in both orders, of what its step calls first and second
VERDICTS = [("first", "second"), ("first", "first"), ("tie", "tie"), ("second", "first"), (None, "first")]


def complete(folder):
    """The manifest names what was written after the step was finished."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["outputs"] = {
        path.name: {"size": path.stat().st_size, "sha256": ""} for path in (folder / "out").iterdir()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def generated(store, name, seed, samples=1, prompts=PROMPTS):
    made = finish(store, "GEN", name, key("GEN", name, seed), params={"split": "eval"}, seed=seed)
    rows = [
        {
            "split": "eval", "prompt_id": each, "sample": sample, "temperature": 1.0, "prompt_tokens": 3,
            "prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"Question {at}"}],
            "chosen": [{"role": "assistant", "content": "yes"}], "response": f"{name} says {at} {sample}",
            "response_tokens": at + sample, "token_ids": [1], "logprobs": [0.0], "seed": 0,
            "finish_reason": "length" if at == 7 and name == "DPO" else "stop",
        }
        for at, each in enumerate(prompts) for sample in range(samples)
    ]  # fmt: skip
    write_responses(store.find(made) / "out", rows)
    complete(store.find(made))
    return made


def scored(store, name, seed, answers):
    values = REWARD[name, seed]
    return finish(
        store, "EVALREWARD", name, key("EVALREWARD", name, seed), inputs={"responses": {"step": answers}}, seed=seed,
        table={"split": "eval", "prompt_id": PROMPTS, "reward_generated": values, "reward_chosen": 0 * values,
               "win_chosen": (values > 0) * 1.0},
    )  # fmt: skip


def said(prompts, verdicts, why=None):
    return [
        {"split": "eval", "prompt_id": each, "sample": 0, "order": order, "verdict": verdict, "first": None,
         "second": None, "rating": None, "why": None if verdict else "unreadable", "answer": f"because {at}"}
        for at, (each, both) in enumerate(zip(prompts, verdicts, strict=False)) for order, verdict in enumerate(both)
    ]  # fmt: skip


def won(both):
    """1, 0.5 or 0 of what stands first in the step; NaN without a verdict."""
    worth = {"first": 1, "tie": 0, "second": -1}
    if None in both:
        return np.nan
    total = worth[both[0]] - worth[both[1]]
    return 0.5 + np.sign(total) / 2


def write_rows(store, made, rows):
    import pandas as pd

    pd.DataFrame(rows).to_parquet(store.find(made) / "out" / "verdicts.parquet")
    complete(store.find(made))


@pytest.fixture
def store(tmp_path):
    """SFT and DPO under two seeds, and a judge who saw both under seed 0; DPO is what its step calls first."""
    store = Store(tmp_path / "store")
    steps = {}
    for name in ("SFT", "DPO"):
        for seed in (0, 1):
            answers = generated(store, name, seed)
            steps[name, seed] = [answers, scored(store, name, seed, answers)]
    prompts = PROMPTS[: len(VERDICTS)]
    judged = finish(
        store, "WINRATE", "m", key("WINRATE"), params={"judge": "gpt"},
        inputs={"first": {"step": steps["DPO", 0][0]}, "second": {"step": steps["SFT", 0][0]}},
        table={"split": "eval", "prompt_id": prompts, "judge_win": [won(both) for both in VERDICTS]},
        summary={"rows": len(prompts)},
    )  # fmt: skip
    write_rows(store, judged, said(prompts, VERDICTS))
    steps["DPO", 0].append(judged)
    for (name, seed), made in steps.items():
        record(store, "t", f"{name}_b_s{seed}", name, seed, {"beta": 0.1} if name == "DPO" else {}, made)
    return store


def two(store, a="t/SFT_b", b="t/DPO_b"):
    known = listed(store.read_refs())
    beside = read(store, {label: known[label] for label in (a, b)})
    return beside, *beside.groups


def test_what_can_be_compared(store):
    refs = store.read_refs()
    assert set(configurations(refs)) == {"t/SFT_b", "t/DPO_b"}
    assert list(listed(refs)) == ["t/DPO_b", "t/DPO_b_s0", "t/DPO_b_s1", "t/SFT_b", "t/SFT_b_s0", "t/SFT_b_s1"]
    assert first_two(listed(refs), store.finished()) == ("t/SFT_b", "t/DPO_b")
    assert first_two(listed(refs[:1]), ()) is None
    differ, same = what_differs(listed(refs)["t/SFT_b"], listed(refs)["t/DPO_b"])
    assert differ == [("method", "SFT", "DPO"), ("beta", "", "0.1")]
    assert ("seed", "0, 1") in same


def test_differences_are_those_of_compare_and_of_scipy(store):
    found, _ = differences(*two(store))
    value = found["reward/mean"]
    expected = compare(store.root, "t/DPO_b", "t/SFT_b")["metrics"]["reward/mean"]
    for name in ("difference", "low", "high", "p", "n", "wins", "ties", "losses"):
        assert value[name] == expected[name]
    mean = [np.mean([REWARD[name, seed] for seed in (0, 1)], axis=0) for name in ("DPO", "SFT")]
    assert value["p"] == pytest.approx(stats.ttest_rel(*mean).pvalue)
    assert (value["a_mean"], value["b_mean"]) == pytest.approx((mean[1].mean(), mean[0].mean()))


def test_only_the_chosen_runs_are_read(store, monkeypatch):
    asked = []
    intact = Store.intact

    def noted(self, path, manifest=None):
        asked.append(path.name)
        return intact(self, path, manifest)

    monkeypatch.setattr(Store, "intact", noted)
    two(store, "t/SFT_b_s0", "t/SFT_b_s1")
    assert asked
    assert not any("DPO" in name for name in asked)


def test_a_judge_who_saw_both(store):
    found, _ = differences(*two(store))
    value = found["judge gpt"]
    outcomes = [2 * won(both) - 1 for both in VERDICTS if None not in both]  # of DPO, which is b
    assert value["difference"] == pytest.approx(np.mean(outcomes))
    assert (value["wins"], value["ties"], value["losses"]) == (1, 2, 1)
    assert value["a_mean"] + value["b_mean"] == pytest.approx(1)
    assert value["unpaired"] == 1
    swapped, _ = differences(*two(store, "t/DPO_b", "t/SFT_b"))
    assert swapped["judge gpt"]["difference"] == pytest.approx(-value["difference"])


@pytest.mark.parametrize("turn", [False, True])
def test_prompt_by_prompt(store, turn):
    beside, *groups = two(store, *(("t/DPO_b", "t/SFT_b") if turn else ("t/SFT_b", "t/DPO_b")))
    a, b = (of_seed(group, 0) for group in groups)
    assert seeds(*groups) == [0, 1]
    table = by_prompt(store, a, b, "reward/mean", beside.matches)
    names = ("DPO", "SFT") if turn else ("SFT", "DPO")
    ahead = REWARD[names[1], 0] - REWARD[names[0], 0]
    assert list(table.index) == PROMPTS
    assert table["difference"].to_numpy() == pytest.approx(ahead)
    assert list(table["b_wins"]) == list(ahead > 0)
    expected = [(2 * won(both) - 1) * (-1 if turn else 1) for both in VERDICTS]
    assert table["judged"].to_numpy()[: len(VERDICTS)] == pytest.approx(expected, nan_ok=True)
    assert table["judged"].isna().sum() == len(PROMPTS) - 4
    assert list(table["judges_disagree"])[: len(VERDICTS)] == [both == ("first", "first") for both in VERDICTS]
    against = [bool(score * judge < 0) for score, judge in zip(ahead, expected, strict=False)]
    assert list(table["reward_judge"])[: len(VERDICTS)] == against
    assert list(table.index[table["cut"]]) == [PROMPTS[7]]
    assert table["longest"].iloc[9] == 9
    assert not table["missing"].any()
    assert all(column == "all" or table[column].dtype == bool for column in FILTERS.values())


def test_by_what_a_judge_said(store):
    beside, a, b = two(store, "t/SFT_b_s0", "t/DPO_b_s0")
    table = by_prompt(store, a.runs[0], b.runs[0], "judge gpt", beside.matches)
    assert (table["b_wins"].sum(), table["a_wins"].sum(), table["tied"].sum()) == (1, 1, 2)
    assert table["missing"].sum() == len(PROMPTS) - 4
    assert (table["b"][PROMPTS[0]], table["a"][PROMPTS[0]]) == (1, 0)
    # the reward that both have stands against the judge, whatever is shown
    by_reward = by_prompt(store, a.runs[0], b.runs[0], "reward/mean", beside.matches)
    assert by_reward["reward_judge"].any()
    assert list(table["reward_judge"]) == list(by_reward["reward_judge"])


def test_one_did_not_answer_all(tmp_path):
    store = Store(tmp_path / "store")
    record(store, "t", "A", "A", 0, {}, [generated(store, "A", 0)])
    record(store, "t", "B", "B", 0, {}, [generated(store, "B", 0, prompts=PROMPTS[3:])])
    record(store, "t", "C", "C", 0, {}, [key("nothing")])
    beside, a, b = two(store, "t/A", "t/B")
    table = by_prompt(store, a.runs[0], b.runs[0], None, beside.matches)
    assert list(table.index[table["missing"]]) == PROMPTS[:3]
    beside, b, c = two(store, "t/B", "t/C")
    table = by_prompt(store, b.runs[0], c.runs[0], None, beside.matches)
    assert table["missing"].all()
    assert differences(beside, b, c)[0] == {}


def test_judges_who_disagree_with_each_other(store):
    """A second judge says the opposite of the first on the first prompt."""
    refs = {ref["name"]: ref for ref in store.read_refs()}
    first, second = refs["SFT_b_s0"]["steps"][0], refs["DPO_b_s0"]["steps"][0]
    judged = finish(
        store, "WINRATE", "n", key("WINRATE", "other"), params={"judge": "other"},
        inputs={"first": {"step": first}, "second": {"step": second}},
        table={"split": "eval", "prompt_id": PROMPTS[:1], "judge_win": [1.0]}, summary={"rows": 1},
    )  # fmt: skip
    write_rows(store, judged, said(PROMPTS[:1], [("first", "second")]))
    ref = refs["DPO_b_s0"]
    store.write_ref("t", "DPO_b_s0", {**ref, "steps": [*ref["steps"], judged]})
    beside, a, b = two(store, "t/SFT_b_s0", "t/DPO_b_s0")
    table = by_prompt(store, a.runs[0], b.runs[0], "reward/mean", beside.matches)
    assert list(table.index[table["judges_disagree"]]) == [PROMPTS[0], PROMPTS[1]]
    # what the first of them says stands, and the other is asked where it says nothing
    assert table["judged"][PROMPTS[0]] == 2 * won(VERDICTS[0]) - 1
    assert table["judged"].notna().sum() == 4
    assert [each.judge for each in judgings(store, a.runs[0], b.runs[0], beside.matches)] == ["gpt", "other"]


def test_who_a_judge_prefers_and_whether_it_is_resolved(store):
    """Of many prompts B wins most; of a few, the same share is not resolved. What was asked otherwise is left out."""
    beside, a, b = two(store, "t/SFT_b_s0", "t/DPO_b_s0")
    (match,) = beside.matches

    def said_by(wins, prompts=60, meaning=match.meaning):
        column = Column(tuple(PROMPTS[: len(wins)]), np.array(wins))
        return replace(match, column=column, prompts=prompts, meaning=meaning)

    many, few = [1.0] * 45 + [0.0] * 15, [1.0, 1.0, 1.0, 0.0]
    value = differences(replace(beside, matches=[said_by(many)]), a, b)[0]["judge gpt"]
    assert (value["a_mean"], value["b_mean"], value["better"]) == (0.25, 0.75, "b")
    assert value["p"] == pytest.approx(stats.ttest_1samp(np.array(many) * 2 - 1, 0).pvalue)
    value = differences(replace(beside, matches=[said_by(many)]), b, a)[0]["judge gpt"]
    assert (value["a_mean"], value["b_mean"], value["better"]) == (0.75, 0.25, "a")
    value = differences(replace(beside, matches=[said_by(few)]), a, b)[0]["judge gpt"]
    assert (value["b_mean"], value["better"], value["unpaired"]) == (0.75, None, 56)
    assert 0.05 < value["p"] < 0.5
    several = [said_by(few), said_by([0.0] * 60, meaning="asked in another way")]
    value = differences(replace(beside, matches=several), a, b)[0]["judge gpt"]
    assert (value["b_mean"], value["n"]) == (0.75, 4)


def test_each_against_the_chosen(tmp_path):
    store = Store(tmp_path / "store")
    for name, wins in (("A", [1.0, 0.0, 0.5]), ("B", [0.0, 1.0, 0.5])):
        answers = generated(store, name, 0)
        judged = finish(
            store, "EVALGPT", name, key("EVALGPT", name), params={"judge": "gpt"}, summary={},
            table={"split": "eval", "prompt_id": PROMPTS[:3], "judge_win_chosen": wins},
        )  # fmt: skip
        write_rows(store, judged, said(PROMPTS[:3], [("first", "second"), ("tie", "tie"), ("second", "second")]))
        record(store, "t", name, name, 0, {}, [answers, judged])
    beside, a, b = two(store, "t/A", "t/B")
    table = by_prompt(store, a.runs[0], b.runs[0], "judge/winrate/chosen", beside.matches)
    assert list(table["judged"][:3]) == [-1, 1, 0]
    assert list(table["judges_disagree"][:3]) == [False, False, True]
    assert list(verdict_steps(store, a.runs[0])) == ["gpt"]


def test_one_answer_of_one_run_that_is_judged_otherwise_in_turn_is_enough(tmp_path):
    """`orders_differ` where each run has a step of its own, and where a prompt has two responses."""
    store = Store(tmp_path / "store")
    steady, torn = [("first", "second")], [("first", "first")]
    folders = []
    for name, samples in (("A", (steady, steady)), ("B", (steady, torn))):
        table = {"split": "eval", "prompt_id": PROMPTS[:1], "judge_win_chosen": [1.0]}
        judged = finish(store, "EVALGPT", name, key("EVALGPT", name), params={"judge": "gpt"}, table=table)
        rows = [{**row, "sample": at} for at, both in enumerate(samples) for row in said(PROMPTS[:1], both)]
        write_rows(store, judged, rows)
        folders.append(store.find(judged))
    differ = [Judging("gpt", pair).outcomes()["orders_differ"][PROMPTS[0]] for pair in (folders, folders[::-1])]
    assert differ == [1, 1]
    read = [[row["verdict"] for row in texts.verdicts(folders[1], PROMPTS[0], at)] for at in (0, 1, 2)]
    assert read == [["first", "second"], ["first", "first"], []]
    assert Judging("gpt", (folders[0], folders[0])).outcomes()["orders_differ"][PROMPTS[0]] == 0


def test_of_a_loss_the_lower_is_ahead(store):
    _, a, b = two(store, "t/SFT_b_s0", "t/DPO_b_s0")
    runs = [replace(each.runs[0], metrics={"loss": each.runs[0].metrics["reward/mean"]}) for each in (a, b)]
    table = by_prompt(store, *runs, "loss", [])
    assert list(table["a_wins"]) == list(REWARD["SFT", 0] < REWARD["DPO", 0])
    assert list(table["b_wins"]) == list(REWARD["SFT", 0] > REWARD["DPO", 0])
    assert table["difference"].to_numpy() == pytest.approx(-table["ahead"].to_numpy())


def test_each_rated_by_itself(tmp_path):
    store = Store(tmp_path / "store")
    for name, ratings in (("A", [7.0, 5.0, None]), ("B", [8.0, 5.0, 3.0])):
        answers = generated(store, name, 0)
        judged = finish(
            store, "EVALGPT", name, key("EVALGPT", name), params={"judge": "gpt"}, summary={},
            table={"split": "eval", "prompt_id": PROMPTS[:3], "judge_rating": ratings},
        )  # fmt: skip
        rows = [
            {**row, "order": None, "verdict": None, "rating": rating}
            for row, rating in zip(said(PROMPTS[:3], [("first",)] * 3), ratings, strict=True)
        ]
        write_rows(store, judged, rows)
        record(store, "t", name, name, 0, {}, [answers, judged])
    beside, a, b = two(store, "t/A", "t/B")
    table = by_prompt(store, a.runs[0], b.runs[0], "judge/rating", beside.matches)
    assert table["judged"].to_numpy()[:3] == pytest.approx([1, 0, np.nan], nan_ok=True)
    assert not table["judges_disagree"].any()


def test_the_texts_of_one_prompt(store):
    _, a, b = two(store, "t/SFT_b_s0", "t/DPO_b_s0")
    run = b.runs[0]
    (row,) = texts.responses(run, PROMPTS[7])
    assert (row["response"], row["finish_reason"]) == ("DPO says 7 0", "length")
    assert [each["role"] for each in row["prompt"]] == ["system", "user"]
    assert texts.responses(run, "nobody") == []
    assert texts.scores(run, PROMPTS[7], 0) == {"reward": (pytest.approx(REWARD["DPO", 0][7]), 0.0)}
    assert texts.scores(run, "nobody", 0) == {}
    assert texts.openings(run)[PROMPTS[7]] == "Question 7"
    assert texts.rejected(run, "eval", PROMPTS[7]) is None
    folder = next(folder for gives, folder in run.folders if gives == "matches")
    rows = texts.verdicts(folder, PROMPTS[1], 0)
    assert [(each["order"], each["verdict"], each["answer"]) for each in rows] == [
        (0, "first", "because 1"),
        (1, "first", "because 1"),
    ]
    assert texts.holding([run, a.runs[0]], "SFT SAYS 1 ") == {PROMPTS[1]}
    assert texts.holding([run], "be brief") == set(PROMPTS)
    assert texts.holding([run], ".*") == set()
    assert texts.different(a.runs[0], run)[PROMPTS[3]] == pytest.approx(1 - 2 * 3 / 8)


def test_several_responses_and_several_rewards(tmp_path):
    store = Store(tmp_path / "store")
    answers = generated(store, "A", 0, samples=2)
    steps = []
    for at, label in enumerate(("PP", "HH")):
        rows = [
            {"split": "eval", "prompt_id": each, "sample": sample, "reward_generated": float(sample + 10 * at),
             "reward_chosen": 5.0} for each in PROMPTS for sample in (0, 1)
        ]  # fmt: skip
        made = finish(
            store, "EVALREWARD", label, key("EVALREWARD", label),
            table={"split": "eval", "prompt_id": PROMPTS, "reward_generated": 0.5 + 10 * at, "reward_chosen": 5.0},
        )  # fmt: skip
        write_scores(store.find(made) / "out", rows, "samples.parquet")
        complete(store.find(made))
        steps.append(made)
    record(store, "t", "A", "A", 0, {}, [answers, *steps])
    ref = store.read_refs()[0]
    store.write_ref("t", "A", {**ref, "labels": dict(zip(steps, ("PP", "HH"), strict=True))})
    record(store, "t", "B", "B", 0, {}, [generated(store, "B", 0)])
    beside, a, b = two(store, "t/A", "t/B")
    assert texts.scores(a.runs[0], PROMPTS[0], 1) == {"reward/PP": (1.0, 5.0), "reward/HH": (11.0, 5.0)}
    table = by_prompt(store, a.runs[0], b.runs[0], "reward/PP/mean", beside.matches)
    assert table["samples"].iloc[0] == 2
    assert table["tokens_a"].iloc[4] == 4 + 5
    assert table["longest"].iloc[4] == 4 + 5
    # "A says 4 0" and "B says 4 0": the first of several responses
    assert texts.different(a.runs[0], b.runs[0])[PROMPTS[4]] == pytest.approx(1 - 2 * 3 / 8)
    # a second answering step takes the place of the first
    again = replace(b.runs[0], folders=[*a.runs[0].folders, *b.runs[0].folders])
    assert by_prompt(store, a.runs[0], again, None, [])["samples_b"].iloc[0] == 1


def test_verdicts_in_words():
    value = {"better": "b", "difference": 0.104, "low": 0.0893, "high": 0.119}
    assert in_words("gold/mean", value, "gold reward") == "B is better: +0.10 gold reward (95 % +0.09 to +0.12)"
    assert in_words("logps/chosen", value).startswith("B is higher: ")
    assert in_words("x", {**value, "better": None, "low": None, "high": None}) == "Not resolved: +0.10"
    tiny = {"better": "a", "difference": -0.00012, "low": -0.00014, "high": -0.0001}
    assert in_words("x", tiny) == "A is better: −0.00012 (95 % −0.00014 to −0.00010)"


def test_what_one_names_in_its_task_is_looked_up_in_the_others_settings():
    one = [{"method": "DPO", "model": "m", "dataset": "d", "tag": "t", "seed": 0, "params": {"beta": 0.1, "lr": 6e-4}}]
    other = [{**one[0], "method": "DPR", "params": {"beta": 0.1, "g": 0.3}}]
    differ, same = what_differs(one, other, [{"lr": 6e-4, "epochs": 2}, {"lr": 3e-4, "epochs": 2, "g": 0.3}])
    assert differ == [("method", "DPO", "DPR"), ("lr", "0.0006", "0.0003"), ("g", "", "0.3")]
    assert ("beta", "0.1") in same


def test_the_means_that_are_compared_are_those_of_what_both_have(tmp_path):
    store = Store(tmp_path / ".cdpo")
    for name, prompts, shift in (("A", PROMPTS, 0.0), ("B", PROMPTS[:20], 5.0)):
        table = {"split": "eval", "prompt_id": prompts, "reward_generated": np.arange(len(prompts)) + shift}
        made = finish(store, "EVALREWARD", name, key("EVALREWARD", name), table=table)
        record(store, "t", name, name, 0, {}, [made])
    value = compare(store.root, "A", "B")["metrics"]["reward/mean"]
    assert (value["a_mean"], value["b_mean"], value["difference"], value["n"]) == (9.5, 14.5, -5.0, 20)
