"""Steps that nobody lists: planned where they are needed, shared by whoever agrees in what decides them."""

import pytest
from planning import Folder, counts, experiment, keys, of

from cdpo.commands.schema import tasks_schema
from cdpo.config.experiment import experiments_of
from cdpo.config.problems import ConfigError
from cdpo.config.tables import read_tables
from cdpo.plan.build import PlanBuilder
from cdpo.plan.graph import Plan
from cdpo.plan.references import References

WHOLE = "[SFT, RM, DPO, GEN, EVALREWARD]"
#: twelve runs: two SFT models, six methods each
TWELVE = (
    "{pipeline: DPO, beta: [0.1, 0.3]}, {pipeline: DR_DPO, beta: 0.1, beta_prime: 1}, "
    "{pipeline: DDP, beta: 0.1, r: 0.4, rho: 0.2}, {pipeline: DPP, beta: 0.1, p: 0.3, pi: 0.2}, "
    "{pipeline: DPR, beta: 0.1, g: 0.3, gamma: 0.3, reward: {step: RM}}"
)


@pytest.fixture
def project(folder: Folder) -> Folder:
    folder.tasks = folder.path / "tasks.yaml"
    folder.write("my.py", "def score(prompts, responses): return [0.0 for _ in prompts]\n")
    return folder


def references(plan: Plan) -> list[int]:
    """How many steps each REFERENCE step serves."""
    return [
        sum(step.inputs.get("reference") == {"step": each.key} for step in plan.steps.values())
        for each in of(plan, "REFERENCE")
    ]


def test_twelve_runs_share_two_references_and_one_scoring_of_the_chosen(folder: Folder) -> None:
    plan = folder.plan(experiment(TWELVE, pipelines=WHOLE, seed="[0, 1]"))
    assert len(plan.runs) == 12
    assert counts(plan) == {
        "PREP": 1,
        "SFT": 2,
        "RM": 1,
        "GEN": 12,
        "EVALREWARD": 12,
        "DPO": 4,
        "DR_DPO": 2,
        "DDP": 2,
        "DPP": 2,
        "DPR": 2,
        "REFERENCE": 2,
        "EVALREWARD_CHOSEN": 1,
    }
    assert references(plan) == [6, 6]
    (chosen,) = of(plan, "EVALREWARD_CHOSEN")
    (data,) = of(plan, "PREP")
    assert all(step.inputs["chosen"] == {"step": chosen.key} for step in of(plan, "EVALREWARD"))
    assert chosen.inputs["data"] == {"step": data.key}
    assert (chosen.seed, chosen.name) == (None, "playground")
    for sft, reference in zip(of(plan, "SFT"), of(plan, "REFERENCE"), strict=True):
        assert reference.inputs == {"data": {"step": data.key}, "model": {"step": sft.key}}
        assert (reference.seed, reference.name) == (None, sft.name)
    order = list(plan.steps)
    for step in plan.steps.values():
        assert all(order.index(parent) < order.index(step.key) for parent in step.parents)
    for run in plan.runs:
        assert {plan.steps[key].pipeline for key in run.steps} >= {"REFERENCE", "EVALREWARD_CHOSEN"}


@pytest.mark.parametrize(
    "change",
    [
        "beta: [0.1, 0.2]",
        "beta: 0.1, loss_type: [sigmoid, ipo, [sigmoid, sft]]",
        "beta: 0.1, learning_rate: [1e-5, 1e-6]",
        "beta: 0.1, num_train_epochs: [1, 2]",
        "beta: 0.1, batch_size: [8, 16]",
        "beta: 0.1, noise_type: label_switching, noise_level: [0.1, 0.2]",
        "beta: 0.1, lora: [{r: 4}, {r: 8}]",
    ],
)
def test_what_decides_no_reference_shares_it(folder: Folder, change: str) -> None:
    plan = folder.plan(experiment(f"{{pipeline: DPO, {change}}}", "SFT: {seed: 0}\n", seed="[0, 1]"))
    assert references(plan) == [len(of(plan, "DPO"))]
    assert len(of(plan, "DPO")) >= 4


@pytest.mark.parametrize(
    "change",
    [
        "dtype: [fp32, bf16]",
        "attn_implementation: [sdpa, eager]",
        "max_length: [64, 128]",
        "lora: [true, false]",
        "ld_alpha: [null, 0.5]",
        "template: [plain, inst]",
        "limit: [10, 20]",
        "max_steps: [1, 2]",
        "model: two",
    ],
)
def test_what_decides_the_reference_makes_another(folder: Folder, change: str) -> None:
    if change.startswith("model"):
        plan = folder.plan(experiment("{pipeline: DPO, beta: 0.1}", model="[tiny, Q0.5B]"))
    else:
        plan = folder.plan(experiment(f"{{pipeline: DPO, beta: [0.1, 0.2], {change}}}"))
    assert references(plan) in ([2, 2], [1, 1])
    assert len(of(plan, "DPO")) == sum(references(plan))


def test_rows_that_are_drawn_are_those_of_the_seed(folder: Folder) -> None:
    """`limit` and `max_steps` choose rows by the seed of the training, and a method that samples leaves some out."""
    for rows in ("limit: 10", "max_steps: 3"):
        plan = folder.plan(experiment(f"{{pipeline: DPO, beta: [1, 2], {rows}}}", "SFT: {seed: 0}\n", seed="[3, 4]"))
        assert [step.seed for step in of(plan, "REFERENCE")] == [3, 4]
        assert references(plan) == [2, 2]
    tasks = (
        "{pipeline: DPO, beta: 1, max_steps: 4, batch_size: 8}, {pipeline: DPO, beta: 1, max_steps: 2, batch_size: 16},"
        "{pipeline: DPP, beta: 1, p: 0.3, pi: 0.2, max_steps: 4, batch_size: 8, max_new_tokens: 7}"
    )
    plan = folder.plan(experiment(tasks))
    assert [step.params["first_rows"] for step in of(plan, "REFERENCE")] == [
        {"rows": 32, "room": 0},
        {"rows": 32, "room": 7},
    ]
    assert references(plan) == [2, 1]


def test_labelled_data_shares_the_reference_of_the_data_it_labels(project: Folder) -> None:
    tasks = "{pipeline: DPO, beta: 1, loss_type: [sigmoid, dpo_pr]}"
    listed = "[SFT, DPO, EVALREWARD_BT]"
    reward = "EVALREWARD_BT: {reward: ./my.py:score}\n"
    assert references(project.plan(experiment(tasks, reward, pipelines=listed))) == [2]
    # a part of the rows: which, depends on the rows that are there
    drawn = project.plan(experiment(tasks.replace("beta: 1", "beta: 1, limit: 8"), reward, pipelines=listed))
    (data,), (labels,) = of(drawn, "PREP"), of(drawn, "EVALREWARD_BT")
    assert [step.inputs["data"]["step"] for step in of(drawn, "REFERENCE")] == [data.key, labels.key]
    cut = project.plan(experiment(tasks, reward.replace("}", ", limit: 5}"), pipelines=listed))
    assert [step.inputs["data"]["step"] for step in of(cut, "REFERENCE")] == [
        of(cut, "PREP")[0].key,
        of(cut, "EVALREWARD_BT")[0].key,
    ]


def test_the_chosen_are_scored_once_for_each_reward_and_choice_of_prompts(project: Folder) -> None:
    more = "EVALREWARD: {reward: [./my.py:score, {step: RM}]}\nGEN: {split: [tune, eval], limit: [5, 6], samples: 2}\n"
    plan = project.plan(experiment("{pipeline: DPO, beta: [1, 2]}", more, pipelines="[SFT, DPO, GEN, EVALREWARD]"))
    found = {
        (step.params["split"], step.params["limit"], "reward_plugin" in step.inputs)
        for step in of(plan, "EVALREWARD_CHOSEN")
    }
    assert len(found) == len(of(plan, "EVALREWARD_CHOSEN")) == 8
    for step in of(plan, "EVALREWARD"):
        made, answered = (plan.steps[step.inputs[role]["step"]] for role in ("chosen", "responses"))
        assert all(made.params[name] == answered.params[name] for name in ("split", "limit"))
        assert all(made.inputs.get(role) == step.inputs.get(role) for role in ("reward", "reward_plugin"))
    # RM has a limit of its own, which says nothing about prompts
    limited = project.plan(experiment("{pipeline: SFT}", "RM: {limit: 9}\n", pipelines=WHOLE))
    assert [step.params["limit"] for step in of(limited, "EVALREWARD_CHOSEN")] == [None]


def test_the_rewards_own_values_are_those_of_the_scoring(folder: Folder) -> None:
    more = "EVALREWARD: {reward: PH, dtype: bf16, attn_implementation: eager, template: inst, max_dropped: 0.5}\n"
    plan = folder.plan(experiment("{pipeline: SFT}", more, pipelines="[SFT, GEN, EVALREWARD]"))
    (chosen,), (scores,) = of(plan, "EVALREWARD_CHOSEN"), of(plan, "EVALREWARD")
    shared = ("dtype", "attn_implementation", "template", "reverse")
    assert {name: chosen.params[name] for name in shared} == {name: scores.params[name] for name in shared}
    assert chosen.params["template"] == "inst"
    assert chosen.unresolved


def test_a_reward_known_in_closed_form_scores_by_itself(folder: Folder) -> None:
    plan = folder.plan(experiment("{pipeline: SFT}", pipelines="[SFT, GEN, EVALREWARD]"))
    assert counts(plan) == {"PREP": 1, "SFT": 1, "GEN": 1, "EVALREWARD": 1}


def test_an_adapter_stands_beside_its_base(folder: Folder) -> None:
    plan = folder.plan(experiment("{pipeline: DPO, beta: 1, lora: true}", "SFT: {lora: true}\n"))
    (reference,), (sft,), (dpo,) = of(plan, "REFERENCE"), of(plan, "SFT"), of(plan, "DPO")
    assert {role: reference.inputs[role] for role in ("model", "model_adapter")} == {
        role: dpo.inputs[role] for role in ("model", "model_adapter")
    }
    assert reference.params["trains_adapter"] is True
    assert reference.name == sft.name
    base = folder.plan(experiment("{pipeline: DPO, beta: 1}", pipelines="[DPO]"))
    assert [step.name for step in of(base, "REFERENCE")] == ["tiny_playground"]


def test_a_choice_among_swept_values_does_not_see_them(folder: Folder) -> None:
    """What REFERENCE and EVALREWARD_CHOSEN were told is swept where the step that takes them is swept."""
    more = (
        "select: {metric: reward/mean, split: tune, over: [max_length]}\n"
        "GEN: {split: [tune, eval]}\nEVALREWARD: {reward: PH}\n"
    )
    plan = folder.plan(experiment("{pipeline: DPO, beta: 1, max_length: [64, 128]}", more, pipelines=WHOLE))
    assert len(plan.runs) == 4
    assert len({run.select["family"] for run in plan.runs if run.select}) == 1


def test_a_smaller_plan_for_smoke_is_of_one_piece(folder: Folder) -> None:
    folder.tasks.write_text(experiment(TWELVE, "GEN: {limit: 100}\n", pipelines=WHOLE))
    tables = read_tables(folder.configs)
    builder = PlanBuilder(tables, References(tables, folder.path), smoke=True)
    from cdpo.config.yaml_reader import read_yaml

    for each in experiments_of(read_yaml(folder.tasks), tables):
        builder.add(each)
    plan = builder.plan(folder.tasks)
    (chosen,) = of(plan, "EVALREWARD_CHOSEN")
    assert chosen.params["limit"] == 8
    assert {step.params["limit"] for step in of(plan, "REFERENCE")} == {8}


@pytest.mark.parametrize(
    ("tasks", "more", "changed", "said"),
    [
        ("{pipeline: SFT}", "REFERENCE: {dtype: fp32}\n", {}, r":6:1: REFERENCE: REFERENCE comes with the steps"),
        ("{pipeline: SFT}", "", {"pipelines": "[SFT, EVALREWARD_CHOSEN]"}, r"pipelines\[1\]: EVALREWARD_CHOSEN comes"),
        ("{pipeline: REFERENCE}", "", {}, "no method is called 'REFERENCE'"),
        ("{pipeline: SFT}", "include: [{REFERENCE.dtype: fp32}]\n", {}, r"include\[0\]"),
    ],
)
def test_nobody_lists_them(folder: Folder, tasks: str, more: str, changed: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        folder.plan(experiment(tasks, more, **changed))


def test_the_schema_of_a_tasks_file_does_not_offer_them() -> None:
    properties = tasks_schema()["$defs"]["experiment"]["properties"]
    assert not {"REFERENCE", "EVALREWARD_CHOSEN"} & {*properties, *properties["pipelines"]["items"]["enum"]}


def test_one_more_run_needs_no_more_of_them(folder: Folder) -> None:
    before = keys(folder.plan(experiment(TWELVE, pipelines=WHOLE)), "REFERENCE", "EVALREWARD_CHOSEN")
    more = TWELVE + ", {pipeline: MIX, beta: 1, r: 0.1, rho: 1, p: 0.1, pi: 1, g: 0.1, gamma: 1, reward: {step: RM}}"
    assert keys(folder.plan(experiment(more, pipelines=WHOLE)), "REFERENCE", "EVALREWARD_CHOSEN") == before
