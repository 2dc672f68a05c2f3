"""EVALREWARD_BT in a plan: made where a step reads what it adds, shared, and absent from the keys of all others."""

import pytest
from planning import Folder, counts, experiment, keys, of

from cdpo.config.problems import ConfigError

PLUGIN = "def score(prompts, responses): return [0.0 for _ in prompts]\n"
LABELS = "EVALREWARD_BT: {reward: ./my.py:score}\n"
LISTED = "[SFT, DPO, EVALREWARD_BT]"


@pytest.fixture
def project(folder: Folder) -> Folder:
    folder.tasks = folder.path / "tasks.yaml"
    folder.write("my.py", PLUGIN)
    return folder


def test_methods_that_read_probabilities_share_one_step_and_others_keep_their_keys(project: Folder) -> None:
    plain = project.plan(experiment("{pipeline: DPO, beta: 1}, {pipeline: DDP, beta: 1, r: 0.1, rho: 1}"))
    tasks = (
        "{pipeline: DPO, beta: 1, loss_type: [sigmoid, dpo_pr, dpo_pro]}, {pipeline: DDP, beta: 1, r: 0.1, rho: 1}, "
        "{pipeline: DPO, beta: 2, redraw_labels: true}"
    )
    plan = project.plan(experiment(tasks, LABELS, pipelines=LISTED))
    assert counts(plan) == {"PREP": 1, "SFT": 1, "EVALREWARD_BT": 1, "REFERENCE": 1, "DPO": 4, "DDP": 1}
    assert keys(plain) < keys(plan), "what reads no probabilities is what it was"
    (labels,) = of(plan, "EVALREWARD_BT")
    (data,) = of(plan, "PREP")
    assert labels.inputs["data"] == {"step": data.key}
    assert labels.params["reverse"] is False
    assert labels.label.startswith("EVALREWARD_BT/playground-")
    for step in of(plan, "DPO"):
        reads = step.params["loss_type"] != "sigmoid" or step.params["redraw_labels"]
        assert step.inputs["data"]["step"] == (labels.key if reads else data.key)
    assert [labels.key in run.steps for run in plan.runs] == [False, True, True, False, True]
    assert plan.wanted == []


def test_sft_and_rm_take_labels_for_their_noise(project: Folder) -> None:
    more = f"{LABELS}SFT: {{redraw_labels: true}}\nRM: {{redraw_labels: true}}\nEVALREWARD: {{reward: {{step: RM}}}}\n"
    plan = project.plan(
        experiment("{pipeline: DPO, beta: 1}", more, pipelines="[SFT, DPO, GEN, EVALREWARD, EVALREWARD_BT]")
    )
    (labels,) = of(plan, "EVALREWARD_BT")
    (data,) = of(plan, "PREP")
    found = {step.pipeline: step.inputs["data"]["step"] for step in plan.steps.values() if "data" in step.inputs}
    assert found["SFT"] == found["RM"] == labels.key
    assert found["DPO"] == found["GEN"] == data.key


def test_a_task_of_its_own_names_no_model(project: Folder) -> None:
    more = "RM: {learning_rate: [1e-3, 2e-3]}\n"
    plan = project.plan(experiment("{pipeline: EVALREWARD_BT}", more, pipelines="[RM, EVALREWARD_BT]", seed="[3, 4]"))
    assert counts(plan) == {"PREP": 1, "RM": 2, "EVALREWARD_BT": 2}, "the reward is that of the first seed"
    assert {step.seed for step in of(plan, "RM")} == {3}
    assert {step.params["learning_rate"] for step in of(plan, "RM")} == {1e-3, 2e-3}
    alone = experiment("{pipeline: EVALREWARD_BT, reward: ./my.py:score}", pipelines="[EVALREWARD_BT]", model="[none]")
    assert counts(project.plan(alone)) == {"PREP": 1, "EVALREWARD_BT": 1}


def test_an_axis_of_the_labels_concerns_only_those_who_read_them(project: Folder) -> None:
    more = "EVALREWARD_BT: {reward: ./my.py:score, bt_temperature: [1.0, fit]}\n"
    plan = project.plan(experiment("{pipeline: DPO, beta: 1, loss_type: [sigmoid, dpo_pr]}", more, pipelines=LISTED))
    assert [run.name for run in plan.runs] == [
        "DPO_tiny_playground_beta1_loss_typesigmoid_s0",
        "DPO_tiny_playground_beta1_loss_typedpo_pr_EVALREWARD_BT.bt_temperature1_s0",
        "DPO_tiny_playground_beta1_loss_typedpo_pr_EVALREWARD_BT.bt_temperaturefit_s0",
    ]
    assert [step.params["bt_temperature"] for step in of(plan, "EVALREWARD_BT")] == [1.0, "fit"]


def test_a_table_says_what_is_a_cost_model(project: Folder) -> None:
    plan = project.plan(experiment("{pipeline: EVALREWARD_BT, reward: [PP, PH]}", pipelines="[EVALREWARD_BT]"))
    assert [step.params["reverse"] for step in of(plan, "EVALREWARD_BT")] == [False, True]


def test_a_score_model_in_beavers_layout_brings_its_own_format(project: Folder) -> None:
    project.model("rm")
    text = experiment("{pipeline: EVALREWARD_BT, reward: ./rm}", pipelines="[EVALREWARD_BT]")
    assert of(project.plan(text), "EVALREWARD_BT")[0].params["template"] == "plain"
    project.write("rm/config.json", '{"architectures": ["LlamaForScore"]}')
    assert of(project.plan(text), "EVALREWARD_BT")[0].params["template"] is None


def test_a_reward_that_labels_the_data_marks_the_scores_it_gives(project: Folder) -> None:
    more = f"{LABELS}EVALREWARD: {{reward: ./my.py:score}}\n"
    listed = "[SFT, DPO, GEN, EVALREWARD, EVALREWARD_BT]"
    plan = project.plan(experiment("{pipeline: DPO, beta: 1, loss_type: [sigmoid, dpo_pr]}", more, pipelines=listed))
    mark = "EVALREWARD: the reward that scores this run also trained it"
    assert [run.marks for run in plan.runs] == [[], [mark]]


def test_listed_for_nothing_is_noted(project: Folder) -> None:
    plan = project.plan(experiment("{pipeline: DPO, beta: 1}", LABELS, pipelines=LISTED))
    assert "EVALREWARD_BT is listed, and no run reads what it adds to the data" in plan.notes[-1]
    assert counts(plan) == {"PREP": 1, "SFT": 1, "REFERENCE": 1, "DPO": 1}


def test_columns_of_the_data_are_wanted_where_they_were_asked_for(project: Folder) -> None:
    tasks = "{pipeline: DPO, beta: 1, loss_type: [sigmoid, dpo_pro], weight_column: w, margin_column: chosen_score}"
    plan = project.plan(experiment(tasks))
    (data,) = of(plan, "PREP")
    assert {(each.column, each.problem.path[-1], each.data) for each in plan.wanted} == {
        ("w", "weight_column", data.key),
        ("chosen_score", "margin_column", data.key),
        ("bt_prob", 1, data.key),
    }
    labelled = project.plan(experiment(tasks, LABELS, pipelines=LISTED))
    assert {each.column for each in labelled.wanted} == {"w"}
    (labels,) = of(labelled, "EVALREWARD_BT")
    assert {step.inputs["data"]["step"] for step in of(labelled, "DPO")} == {labels.key}, "the margin is a label too"


@pytest.mark.parametrize(
    ("tasks", "more", "said"),
    [
        ("{pipeline: DPO, beta: 1, loss_type: dpo_pr}", "", r":2:12: pipelines: EVALREWARD_BT needs a `reward`"),
        (
            "{pipeline: DPO, beta: 1, loss_type: dpo_pr}",
            "EVALREWARD_BT: {reward: ./my.py:score, split: eval}\n",
            r":6:47: EVALREWARD_BT.split: .* label eval alone, and DPO needs all splits for its loss_type",
        ),
        (
            "{pipeline: DPO, beta: 1, loss_type: dpo_pr}",
            "EVALREWARD_BT: {reward: {step: RM}}\nRM: {redraw_labels: true}\n",
            r":6:25: EVALREWARD_BT.reward: RM would learn from what EVALREWARD_BT makes with this very RM: name",
        ),
        (
            "{pipeline: EVALREWARD_BT, reward: ./my.py:score, bt_temperature: fit, split: tune}",
            "",
            r":5:9: tasks\[0\]: bt_temperature is fitted on train, and split is tune",
        ),
        ("{pipeline: EVALREWARD_BT, bt_temperature: 0}", "", r":5:51: .*bt_temperature: "),
        ("{pipeline: EVALREWARD_BT, bt_temperature: warm}", "", r":5:51: .*bt_temperature: "),
    ],
)
def test_refused_with_the_place(project: Folder, tasks: str, more: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        project.plan(experiment(tasks, more, pipelines="[SFT, DPO, EVALREWARD_BT]"))
