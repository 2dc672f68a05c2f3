"""Reward models: every way to name one, who trains it, and who must be told."""

import pytest
from planning import ROWS, Folder, counts, experiment, keys, of

from cdpo.config.problems import ConfigError
from cdpo.pipeline import pipelines

WHOLE = "[SFT, RM, DPO, GEN, EVALREWARD]"
SCORED = "[SFT, DPO, GEN, EVALREWARD]"
MARK = "EVALREWARD: the reward that scores this run also trained it"


def test_a_name_of_the_table_with_its_reversal(folder: Folder) -> None:
    plan = folder.plan(experiment("{pipeline: SFT}", "EVALREWARD: {reward: [PP, PH]}\n", pipelines=SCORED))
    found = [(step.inputs["reward"]["hub"], step.params["reverse"]) for step in of(plan, "EVALREWARD")]
    assert found == [("PKU-Alignment/beaver-7b-v1.0-reward", False), ("PKU-Alignment/beaver-7b-v1.0-cost", True)]
    written = experiment("{pipeline: SFT}", "EVALREWARD: {reward: PH, reverse: false}\n", pipelines=SCORED)
    assert of(folder.plan(written), "EVALREWARD")[0].params["reverse"] is False


def test_a_hub_id_a_folder_and_a_plugin(folder: Folder) -> None:
    folder.tasks = folder.path / "tasks.yaml"
    place = folder.model("rm")
    file = folder.write("my.py", "def score(prompts, responses): return [0.0 for _ in prompts]\n")
    text = experiment("{pipeline: SFT}", "EVALREWARD: {reward: [a/b, ./rm, './my.py:score']}\n", pipelines=SCORED)
    plan = folder.plan(text)
    hub, local, plugin = (step.inputs for step in of(plan, "EVALREWARD"))
    assert hub["reward"] == {"hub": "a/b", "kind": "model", "asked": "main", "revision": None}
    assert local["reward"]["folder"] == str(place)
    assert plugin["reward_plugin"]["plugin"] == f"{file}:score"
    assert "reward" not in plugin
    assert [step.unresolved is None for step in of(plan, "EVALREWARD")] == [False, True, True]
    # its bytes and the function are the key, not its place
    folder.write("your.py", file.read_text())
    assert keys(folder.plan(text.replace("./my.py", "./your.py"))) == keys(plan)
    file.write_text(file.read_text().replace("0.0", "1.0"))
    assert sorted(step.pipeline for key, step in folder.plan(text).steps.items() if key not in plan.steps) == [
        "EVALREWARD",
        "EVALREWARD_CHOSEN",
    ]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"architectures": ["LlamaForCausalLM"]}', "is a language model, not a reward model"),
        ('{"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b"}}', "gives 2 labels"),
        ('{"architectures": ["LlamaForSequenceClassification"]}', "gives 2 labels"),  # what transformers then makes
    ],
)
def test_a_folder_that_is_no_reward_model_is_refused_where_it_is_named(folder: Folder, config: str, said: str) -> None:
    folder.tasks = folder.path / "tasks.yaml"
    folder.model("rm")
    (folder.path / "rm" / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=rf":5:62: tasks\[0\].reward: .*/rm {said}"):
        folder.plan(experiment("{pipeline: DPR, beta: 1, g: 0.3, gamma: 0.3, reward: ./rm}"))


def test_a_plugin_of_a_package(folder: Folder) -> None:
    text = experiment("{pipeline: SFT}", "EVALREWARD: {reward: 'json.decoder:scanstring'}\n", pipelines=SCORED)
    (step,) = of(folder.plan(text), "EVALREWARD")
    assert step.inputs["reward_plugin"]["plugin"] == "json.decoder:scanstring"
    for wrong in ("no_such_module_here:f", "json.no_such_part:f", "./nowhere.py:f", "json.decoder.deeper:f"):
        with pytest.raises(ConfigError, match=r"EVALREWARD\.reward: (there is no|the module)"):
            folder.plan(text.replace("json.decoder:scanstring", wrong))


def test_a_package_that_fails_when_it_is_looked_for(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write("brokenpackage/__init__.py", "raise RuntimeError('mine')\n")
    monkeypatch.syspath_prepend(folder.path)
    text = experiment("{pipeline: SFT}", "EVALREWARD: {reward: 'brokenpackage.part:f'}\n", pipelines=SCORED)
    with pytest.raises(ConfigError, match=r"the module brokenpackage\.part cannot be found: mine"):
        folder.plan(text)


def test_the_one_that_is_listed_is_trained_and_used(folder: Folder) -> None:
    plan = folder.plan(experiment("{pipeline: SFT}", pipelines=WHOLE, seed="[5, 6]"))
    (trained,) = of(plan, "RM")
    assert trained.seed == 5
    assert {step.inputs["reward"]["step"] for step in of(plan, "EVALREWARD")} == {trained.key}
    assert all(trained.key in run.steps for run in plan.runs)


def test_step_rm_needs_not_be_listed(folder: Folder) -> None:
    listed = folder.plan(experiment("{pipeline: SFT}", pipelines=WHOLE))
    named = folder.plan(experiment("{pipeline: SFT}", "EVALREWARD: {reward: {step: RM}}\n", pipelines=SCORED))
    assert keys(named) == keys(listed)
    whole = "EVALREWARD: {reward: {step: RM, model: tiny, dataset: playground, seed: 0}}\n"
    assert keys(folder.plan(experiment("{pipeline: SFT}", whole, pipelines=SCORED))) == keys(listed)


def test_step_rm_of_another_model_dataset_and_seed(folder: Folder) -> None:
    folder.tasks = folder.path / "tasks.yaml"
    folder.write("rows.jsonl", ROWS)
    more = (
        "EVALREWARD: {reward: {step: RM, model: Q0.5B, dataset: ./rows.jsonl, seed: 9}}\nRM: {max_steps: 3, seed: 4}\n"
    )
    plan = folder.plan(experiment("{pipeline: SFT}", more, pipelines=SCORED, seed="[0, 1]"))
    assert counts(plan) == {"PREP": 2, "SFT": 2, "GEN": 2, "RM": 1, "EVALREWARD_CHOSEN": 1, "EVALREWARD": 2}
    (trained,) = of(plan, "RM")
    assert (trained.seed, trained.params["max_steps"]) == (9, 3)
    assert trained.inputs["model"]["hub"] == "Qwen/Qwen1.5-0.5B"
    data = plan.steps[trained.inputs["data"]["step"]]
    assert data.inputs["source"]["files"] == [str(folder.path / "rows.jsonl")]
    # the gold reward stays that of the run's own data
    assert {step.params["gold"] for step in of(plan, "EVALREWARD")} == {"playground"}


def test_an_adapter_is_a_reward_model_over_its_base(folder: Folder) -> None:
    plan = folder.plan(experiment("{pipeline: SFT}", "RM: {lora: true}\n", pipelines=WHOLE))
    (scores,), (trained,) = of(plan, "EVALREWARD"), of(plan, "RM")
    assert scores.inputs["reward"] == {"built": {"kind": "tiny", "seed": 0}}
    assert scores.inputs["reward_adapter"] == {"step": trained.key}
    assert trained.key in scores.parents


def test_several_models_must_say_whose(folder: Folder) -> None:
    text = experiment("{pipeline: SFT}", pipelines=WHOLE, model="[tiny, Q0.5B]")
    with pytest.raises(ConfigError, match="all runs are scored by one reward model, and there are 2 models"):
        folder.plan(text)
    plan = folder.plan(text + "EVALREWARD: {reward: {step: RM, model: tiny}}\n")
    assert counts(plan)["RM"] == 1


def test_the_table_of_evaluations_by_the_beginning_of_the_dataset(folder: Folder) -> None:
    plan = folder.plan(experiment("{pipeline: BASE}", pipelines="[GEN, EVALREWARD]", dataset="[PP10, PM0, U30]"))
    found = [step.inputs["reward"]["hub"].rsplit("-")[-1] for step in of(plan, "EVALREWARD")]
    assert found == ["reward", "cost", "7b"]
    assert [step.params["reverse"] for step in of(plan, "EVALREWARD")] == [False, True, False]


@pytest.mark.fault(15)
def test_every_released_dataset_trains_whether_or_not_a_reward_is_known_for_it(folder: Folder) -> None:
    three = (10, 30, 0)
    sizes = {"PP": three, "PM": three, "U": three, "AH": three, "OS": three, "OW": (10, 0)}
    names = [f"{name}{size}" for name in sizes for size in sizes[name]]
    assert len(names) == 17
    tasks = "{pipeline: DPO, beta: 0.1}, {pipeline: DPP, beta: 0.1, p: 0.3, pi: 0.2}"
    plan = folder.plan(experiment(tasks, pipelines="[SFT, DPO, GEN]", dataset=f"[{', '.join(names)}]"))
    assert counts(plan) == {"PREP": 17, "SFT": 17, "REFERENCE": 17, "DPO": 17, "DPP": 17, "GEN": 34}
    assert not any(step.unavailable for step in plan.steps.values())


def test_gold_alone_is_enough_and_nothing_is_not(folder: Folder) -> None:
    (step,) = of(folder.plan(experiment("{pipeline: SFT}", pipelines=SCORED)), "EVALREWARD")
    assert step.params["gold"] == "playground"
    assert set(step.inputs) == {"responses"}
    with pytest.raises(ConfigError, match="EVALREWARD needs a `reward`"):
        folder.plan(experiment("{pipeline: SFT}", pipelines=SCORED, dataset="[OS0]"))


@pytest.mark.parametrize("reward", ["PP", "{step: RM}", "{step: RM, seed: 1}"])
def test_a_reward_that_also_trained_the_policy_is_marked(folder: Folder, reward: str) -> None:
    tasks = f"{{pipeline: DPR, beta: 1, g: 0.1, gamma: 1, reward: {reward}}}, {{pipeline: SFT}}"
    same = folder.plan(experiment(tasks, f"EVALREWARD: {{reward: {reward}}}\n", pipelines=SCORED))
    assert [run.marks for run in same.runs] == [[MARK], []]
    other = folder.plan(experiment(tasks, "EVALREWARD: {reward: U}\n", pipelines=SCORED))
    assert [run.marks for run in other.runs] == [[], []]


def test_the_mark_goes_by_what_a_name_stands_for(folder: Folder) -> None:
    tasks = "{pipeline: DPR, beta: 1, g: 0.1, gamma: 1, reward: openbmb/Eurus-RM-7b}"
    plan = folder.plan(experiment(tasks, "EVALREWARD: {reward: U}\n", pipelines=SCORED))
    assert plan.runs[0].marks == [MARK]


@pytest.mark.parametrize("task", ["DPR, beta: 1, g: 0.1, gamma: 1", "DRO_DPR, beta: 1, dro: 0.1, omega: 1"])
@pytest.mark.parametrize("how", ["listed", "step", "named"])
def test_the_reward_that_labels_may_be_named_in_every_way(folder: Folder, task: str, how: str) -> None:
    reward = {"listed": "", "step": ", reward: {step: RM}", "named": ", reward: PH"}[how]
    evaluation = "EVALREWARD: {reward: U}\n"
    stages = WHOLE if how == "listed" else SCORED
    plan = folder.plan(experiment(f"{{pipeline: {task}{reward}}}", evaluation, pipelines=stages, seed="[3, 4]"))
    trained = [step for step in plan.steps.values() if step.pipeline == task.partition(",")[0]]
    assert len(trained) == 2
    models = of(plan, "RM")
    if how == "named":
        assert not models
        assert {(step.inputs["reward"]["hub"], step.params["reverse"]) for step in trained} == {
            ("PKU-Alignment/beaver-7b-v1.0-cost", True)
        }
        return
    (model,) = models
    assert model.seed == 3, "all seeds learn from one reward model"
    assert {step.inputs["reward"]["step"] for step in trained} == {model.key}
    assert all(model.key in run.steps for run in plan.runs)


def test_what_the_rewards_entry_says_is_in_the_key(folder: Folder) -> None:
    def trained(entry: str, task: str = "") -> tuple[str, dict[str, object]]:
        folder.table("models/reward.yaml", f"R: {{id: some/reward{entry}}}\n")
        tasks = f"{{pipeline: DPR, beta: 1, g: 0.1, gamma: 1, reward: R{task}}}"
        (step,) = of(folder.plan(experiment(tasks)), "DPR")
        return step.key, {name: step.params[name] for name in ("template", "reward_template", "reverse")}

    plain, values = trained("")
    assert values == {"template": None, "reward_template": None, "reverse": False}
    reversed_, values = trained(", reverse: true")
    assert values["reverse"] is True
    formed, values = trained(", template: inst")
    assert (values["template"], values["reward_template"]) == (None, "inst")
    assert len({plain, reversed_, formed}) == 3
    assert trained(", reverse: true", ", reverse: false") == trained("")


def test_an_adapter_labels_over_its_base(folder: Folder) -> None:
    tasks = "{pipeline: DPR, beta: 1, g: 0.1, gamma: 1, lora: true}"
    (step,) = of(folder.plan(experiment(tasks, "RM: {lora: true}\n", pipelines=WHOLE)), "DPR")
    assert step.inputs["reward"] == {"built": {"kind": "tiny", "seed": 0}}
    assert set(step.inputs) == {"data", "model", "reference", "reward", "reward_adapter"}


def test_base_is_only_evaluated(folder: Folder) -> None:
    plan = folder.plan(experiment("{pipeline: BASE}", "SFT: {batch_size: 4}\n", pipelines=WHOLE, seed="[0, 1]"))
    assert counts(plan) == {"PREP": 1, "GEN": 2, "RM": 1, "EVALREWARD_CHOSEN": 1, "EVALREWARD": 2}
    assert [run.name for run in plan.runs] == ["BASE_tiny_playground_s0", "BASE_tiny_playground_s1"]
    assert of(plan, "GEN")[0].inputs["model"] == {"built": {"kind": "tiny", "seed": 0}}


def test_a_reward_model_is_a_run_of_its_own(folder: Folder) -> None:
    assert pipelines()["RM"].method
    text = experiment("{pipeline: RM, batch_size: [8, 16]}", "GEN: {top_k: [1, 2]}\n", pipelines=WHOLE)
    plan = folder.plan(text)
    assert [run.name for run in plan.runs] == [
        "RM_tiny_playground_batch_size8_s0",
        "RM_tiny_playground_batch_size16_s0",
    ]
    assert counts(plan) == {"PREP": 1, "RM": 2}


@pytest.mark.fault(23)
@pytest.mark.fault(25)
def test_the_released_example_plans_without_a_network(folder: Folder) -> None:
    from cdpo.config.tables import shipped_configs

    plan = folder.plan((shipped_configs() / "examples/sail.yaml").read_text())
    assert counts(plan) == {
        "PREP": 1,
        "SFT": 1,
        "DPO": 1,
        "DDP": 1,
        "DPP": 1,
        "DPR": 1,
        "DRO_DPR": 1,
        "EVALREWARD_BT": 1,
        "REFERENCE": 1,
        "EVALREWARD_CHOSEN": 1,
        "GEN": 5,
        "EVALREWARD": 5,
    }
    (labelled,) = of(plan, "EVALREWARD_BT")
    takers = [step.pipeline for step in plan.steps.values() if step.inputs.get("data") == {"step": labelled.key}]
    assert takers == ["DRO_DPR"]
    assert all(step.unresolved for step in plan.steps.values())
    assert not any(step.unavailable for step in plan.steps.values())


# -- plug-in dataset rules ----------------------------------------------------------------------------------------


def test_a_users_own_rule(folder: Folder) -> None:
    folder.tasks = folder.path / "tasks.yaml"
    folder.write("rows.jsonl", ROWS)
    file = folder.write("mine.py", "def rule(row): return row\n")
    text = "datasets: {d: {path: ./rows.jsonl, rule: './mine.py:rule'}}\nexperiments:\n- " + experiment(
        "{pipeline: SFT}", dataset="[d]"
    ).replace("\n", "\n  ")
    plan = folder.plan(text)
    (prep,) = of(plan, "PREP")
    assert prep.params["rule"] == "plugin"
    assert prep.inputs["rule_plugin"]["plugin"] == f"{file}:rule"
    assert set(prep.inputs) == {"source", "rule_plugin"}
    folder.write("other/yours.py", file.read_text())
    assert keys(folder.plan(text.replace("./mine.py", "./other/yours.py"))) == keys(plan)
    file.write_text("def rule(row): return None\n")
    assert not keys(folder.plan(text)) & keys(plan)
    with pytest.raises(ConfigError, match=r"dataset\[0\]: there is no \./gone\.py"):
        folder.plan(text.replace("./mine.py", "./gone.py"))


def test_a_misspelt_function_is_found_before_anything_runs(folder: Folder) -> None:
    folder.write("my.py", "def score(prompts, responses): return [0.0 for _ in prompts]\n")
    text = experiment("{pipeline: SFT}", "EVALREWARD: {reward: ./my.py:scroe}\n", pipelines=SCORED)
    with pytest.raises(ConfigError, match=r"has no function 'scroe' \(did you mean 'score'\?\)"):
        folder.plan(text)
