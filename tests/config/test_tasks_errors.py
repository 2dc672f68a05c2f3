"""What is wrong in a tasks file, at its exact place, all at once; and the forms that are right."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cdpo.config.problems import ConfigError, Problem, show_path, suggest
from cdpo.plan.build import plan_file

Problems = Callable[[str | bytes], list[Problem]]

HEAD = "tag: t\npipelines: [SFT, DPO]\nmodel: [tiny]\ndataset: [playground]\n"
REWARDED = "tag: t\npipelines: [SFT, RM, DPO, GEN, EVALREWARD]\nmodel: [tiny]\ndataset: [playground]\n"
#: name -> (the file, what must be said: "LINE:COL: PATH: message", each the beginning of one problem, no other)
WRONG: dict[str, tuple[str, list[str]]] = {
    "unknown key of an experiment": (
        HEAD + "tsaks: []\ntasks: [{pipeline: SFT}]\n",
        ["5:1: tsaks: unknown key (did you mean 'tasks'?)"],
    ),
    "unknown parameter": (
        HEAD + "tasks:\n  - {pipeline: DPO, beta: [0.1], betta: 1}\n",
        ["6:34: tasks[0].betta: unknown key (did you mean 'beta'?)"],
    ),
    "parameter of another method": (
        HEAD + "tasks:\n  - {pipeline: DPO, beta: 0.1, rho: 0.2}\n",
        ["6:32: tasks[0].rho: unknown key"],
    ),
    "unknown method": (
        HEAD + "tasks:\n  - {pipeline: DPOO, beta: [0.1]}\n",
        ["6:16: tasks[0].pipeline: no method is called 'DPOO' (did you mean 'DPO'?)"],
    ),
    "no method": (HEAD + "tasks:\n  - {beta: [0.1]}\n", ["6:5: tasks[0].pipeline: is required and missing"]),
    "unknown pipeline": (
        HEAD.replace("DPO", "DOP") + "tasks: [{pipeline: SFT}]\n",
        ["2:18: pipelines[1]: no pipeline is called 'DOP' (did you mean 'DPO'?)"],
    ),
    "pipeline twice": (
        HEAD.replace("DPO", "SFT") + "tasks: [{pipeline: SFT}]\n",
        ["2:18: pipelines[1]: SFT is listed twice"],
    ),
    "method not listed": (
        HEAD.replace(", DPO", "") + "tasks: [{pipeline: DDP, beta: 1, r: 0.1, rho: 1}]\n",
        ["2:12: pipelines: tasks name DDP, which is not listed here: add DPO"],
    ),
    "unknown model": (
        HEAD.replace("tiny", "Q05B") + "tasks: [{pipeline: SFT}]\n",
        ["3:9: model[0]: no model is called 'Q05B' (did you mean 'Q0.5B'?)"],
    ),
    "unknown dataset": (
        HEAD.replace("[playground]", "plaground") + "tasks: [{pipeline: SFT}]\n",
        ["4:10: dataset: no dataset is called 'plaground' (did you mean 'playground'?)"],
    ),
    "no such folder": (
        HEAD.replace("tiny", "tiny, ./nowhere") + "tasks: [{pipeline: SFT}]\n",
        ["3:15: model[1]: there is no ./nowhere (looked in "],
    ),
    "missing rho": (
        HEAD + "tasks:\n  - {pipeline: DPO, beta: 0.1}\n  - {pipeline: DDP, beta: [0.1], r: [0.4]}\n",
        ["7:5: tasks[1].rho: is required and missing: DDP needs rho"],
    ),
    "missing everything": (
        "seed: 0\n",
        [f"1:1: {key}: is required and missing" for key in ("dataset", "model", "pipelines", "tag", "tasks")],
    ),
    "nan": (HEAD + "tasks: [{pipeline: DPO, beta: .nan}]\n", ["5:31: tasks[0].beta: should be a finite number"]),
    "infinite": (
        HEAD + "tasks: [{pipeline: DPO, beta: [1, .inf]}]\n",
        ["5:35: tasks[0].beta[1]: should be a finite number"],
    ),
    "too large": (HEAD + "tasks: [{pipeline: DPO, beta: 1e999}]\n", ["5:31: tasks[0].beta: should be a finite number"]),
    "boolean as number": (
        HEAD + "tasks: [{pipeline: DPO, beta: [true]}]\n",
        ["5:32: tasks[0].beta[0]: should be a valid number, not True"],
    ),
    "text as number": (
        HEAD + "tasks: [{pipeline: DPO, beta: '0.1'}]\n",
        ["5:31: tasks[0].beta: should be a valid number, not '0.1'"],
    ),
    "number as boolean": (
        HEAD + "tasks: [{pipeline: DPO, beta: 1, use_weighting: 1}]\n",
        ["5:49: tasks[0].use_weighting: should be a valid boolean, not 1"],
    ),
    "yes is text": (
        HEAD + "tasks: [{pipeline: DPO, beta: 1, use_weighting: yes}]\n",
        ["5:49: tasks[0].use_weighting: should be a valid boolean, not 'yes'"],
    ),
    "nothing as number": (
        HEAD + "tasks: [{pipeline: DPO, beta: }]\n",
        ["5:30: tasks[0].beta: should be a valid number, not nothing"],
    ),
    "not positive": (
        HEAD + "tasks: [{pipeline: DPO, beta: [0.1, 0, -1]}]\n",
        [
            "5:37: tasks[0].beta[1]: should be greater than 0, not 0",
            "5:40: tasks[0].beta[2]: should be greater than 0, not -1",
        ],
    ),
    "share above its range": (
        HEAD + "tasks: [{pipeline: DDP, beta: 0.1, r: 1, rho: -1}]\n",
        [
            "5:39: tasks[0].r: should be less than 1, not 1",
            "5:47: tasks[0].rho: should be greater than or equal to 0, not -1",
        ],
    ),
    "shares that leave nothing": (
        HEAD.replace("DPO]", "DPO, EVALREWARD, GEN]")
        + "tasks:\n  - {pipeline: MIX, beta: 1, r: 0.4, rho: 1, p: 0.3, pi: 1, g: 0.3, gamma: 1, reward: U}\n"
        + "EVALREWARD: {reward: U}\n",
        ["6:5: tasks[0]: r + p + g must be below 1, and 0.4 + 0.3 + 0.3 = 1"],
    ),
    "a share of more than all": (
        HEAD + "tasks:\n  - {pipeline: DDP, beta: 0.1, r: [0.4, 1.2], rho: 0.2}\n",
        ["6:41: tasks[0].r[1]: should be less than 1, not 1.2"],
    ),
    "a share of all": (
        HEAD + "tasks:\n  - {pipeline: DPR, beta: 0.1, g: 1, gamma: 0.2, reward: U}\n",
        ["6:35: tasks[0].g: should be less than 1, not 1"],
    ),
    "parameters of a method without samples": (
        HEAD + "tasks:\n  - {pipeline: DDP, beta: 0.1, r: 0.4, rho: 0.2, max_new_tokens: 8}\n",
        ["6:50: tasks[0].max_new_tokens: unknown key"],
    ),
    "a misspelt option of a method": (
        HEAD + "tasks:\n  - {pipeline: DPP, beta: 0.1, p: 0.4, pi: 0.2, stalenes: 2}\n",
        ["6:49: tasks[0].stalenes: unknown key (did you mean 'staleness'?)"],
    ),
    "stretched epochs that steps decide": (
        HEAD + "tasks:\n  - {pipeline: DDP, beta: 1, r: 0.4, rho: 1, stretch_epochs: true, max_steps: 3}\n",
        ["6:5: tasks[0]: stretch_epochs lengthens num_train_epochs, and max_steps decides in its place: give one"],
    ),
    "a mixture over several tasks": (
        HEAD + "tasks:\n  - {pipeline: SFT}\n  - {pipeline: MIX, beta: 1, r: [0.2, 0.6], rho: 1, p: 0.2, pi: 1, "
        "g: 0.2, gamma: 1, reward: U}\n",
        ["7:5: tasks[1]: r + p + g must be below 1, and 0.6 + 0.2 + 0.2 = 1"],
    ),
    "parameters that do not fit together": (
        HEAD + "tasks:\n  - {pipeline: SFT, quantization: nf4}\n",
        ["6:5: tasks[0]: quantization trains an adapter over frozen 4-bit weights: write `lora: true` too"],
    ),
    "a list in place of a value": (
        HEAD + "tasks: [{pipeline: DPO, beta: [[0.1]]}]\n",
        ["5:32: tasks[0].beta[0]: should be a valid number, not [0.1]"],
    ),
    "inside a nested mapping": (
        HEAD + "tasks:\n- pipeline: SFT\n  lora:\n    rr: 8\n    lora_alpha: -2\n",
        [
            "8:5: tasks[0].lora.rr: unknown key (did you mean 'r'?)",
            "9:17: tasks[0].lora.lora_alpha: should be greater than 0, not -2",
        ],
    ),
    "inside a nested mapping of an axis": (
        HEAD + "tasks: [{pipeline: SFT, lora: [true, {r: 0}, {alpha: 1}]}]\n",
        [
            "5:42: tasks[0].lora[1].r: should be greater than or equal to 1, not 0",
            "5:47: tasks[0].lora[2].alpha: unknown key (did you mean 'lora_alpha'?)",
        ],
    ),
    "an item of a list that is one value": (
        HEAD + "tasks: [{pipeline: DPO, beta: 1, loss_type: [[sigmoid, hing]]}]\n",
        ["5:56: tasks[0].loss_type[0][1]: should be 'sigmoid', 'hinge'"],
    ),
    "environment": (
        HEAD + "tasks: [{pipeline: DPO, beta: '${env:BETA}'}]\nSFT: {template: '${env:HOME}'}\n",
        [
            "5:31: tasks[0].beta: an environment variable may not decide what is hashed",
            "5:31: tasks[0].beta: should be a valid number",
            "6:17: SFT.template: an environment variable may not decide what is hashed",
        ],
    ),
    "unset environment": (
        HEAD.replace("tiny", '"${env:CDPO_TEST_UNSET}/m"') + "tasks: [{pipeline: SFT}]\n",
        ["3:9: model[0]: the environment variable CDPO_TEST_UNSET is not set"],
    ),
    "empty axis": (
        HEAD + "seed: []\ntasks: [{pipeline: DPO, beta: []}]\n",
        ["5:7: seed: an axis needs at least one value", "6:31: tasks[0].beta: an axis needs at least one value"],
    ),
    "empty lists": (
        "tag: t\npipelines: []\nmodel: []\ndataset: []\ntasks: []\n",
        [
            "2:12: pipelines: lists no pipeline",
            "3:8: model: an axis needs at least one value",
            "4:10: dataset: an axis needs at least one value",
            "5:8: tasks: lists no task",
        ],
    ),
    "value twice": (
        HEAD
        + "seed: [0, 1, 0]\ntasks: [{pipeline: DPO, beta: [1, 0.5, 1.0]}]\nSFT: {learning_rate: [1e-5, 0.00001]}\n",
        [
            "5:14: seed[2]: this value stands twice in the axis",
            "6:40: tasks[0].beta[2]: this value stands twice in the axis",
            "7:29: SFT.learning_rate[1]: this value stands twice in the axis",
        ],
    ),
    "exclude of nothing": (
        HEAD + "tasks: [{pipeline: DPO, beta: [0.1, 0.3]}]\nexclude:\n  - {beta: 0.1, seed: 1}\n  - {betta: 1}\n",
        [
            "7:5: exclude[0]: this exclude matches no run",
            "8:6: exclude[1].betta: no run has this parameter (did you mean 'beta'?)",
        ],
    ),
    "exclude of everything": (
        HEAD + "tasks: [{pipeline: SFT}]\nexclude: [{pipeline: SFT}]\n",
        ["1:1: (top): every run of the matrix is excluded"],
    ),
    "wrong seeds": (
        HEAD + "seed: [-1, 1.0, true, one, 2147483648]\ntasks: [{pipeline: SFT}]\n",
        [f"5:{col}: seed[{index}]: a seed is a whole number" for index, col in enumerate((8, 12, 17, 23, 28))],
    ),
    "wrong types everywhere": (
        "tag: 1\npipelines: {SFT: 1}\nmodel: [1]\ndataset: {a: b}\ntasks: SFT\nSFT: [1]\nexclude: 3\ninclude: [4]\n",
        [
            "1:6: tag: a tag is text; write it in quotes: '1'",
            "2:12: pipelines: should be a list of pipelines",
            "3:9: model[0]: the name of a model is text, not 1",
            "4:10: dataset: the name of a dataset is text",
            "5:8: tasks: should be a list of tasks",
            "6:6: SFT: should be a mapping with parameters of SFT",
            "7:10: exclude: should be a list of mappings",
            "8:10: include: should be a list of mappings",
        ],
    ),
    "a tag that is no name": (
        HEAD.replace("tag: t", "tag: ../x") + "tasks: [{pipeline: SFT}]\n",
        ["1:6: tag: a tag is at most 64 letters"],
    ),
    "the tag that stood for a missing one": (
        HEAD.replace("tag: t", "tag: '-'") + "tasks: [{pipeline: SFT}]\n",
        ["1:6: tag: a tag is at most 64 letters"],
    ),
    "a task that is a word": (HEAD + "tasks: [SFT]\n", ["5:9: tasks[0]: a task is a mapping"]),
    "BASE with parameters": (
        HEAD.replace("DPO]", "GEN]") + "tasks: [{pipeline: BASE, beta: 1}]\n",
        ["5:26: tasks[0].beta: BASE trains nothing and takes no parameters"],
    ),
    "BASE with nothing to do": (
        HEAD + "tasks: [{pipeline: BASE}]\n",
        ["5:9: tasks[0]: this run has nothing to do"],
    ),
    "a mapping that no run reads": (
        HEAD + "tasks: [{pipeline: SFT}]\nGEN: {temperature: 1}\n",
        ["6:1: GEN: no run goes through GEN"],
    ),
    "a stage without what it needs": (
        HEAD.replace("DPO", "EVALREWARD") + "tasks: [{pipeline: SFT}]\n",
        ["2:12: pipelines: EVALREWARD needs responses: list GEN too"],
    ),
    "no reward": (
        HEAD.replace("DPO", "DPO") + "tasks:\n  - {pipeline: DPR, beta: 1, g: 0.1, gamma: 1}\n",
        ["6:5: tasks[0]: DPR needs a `reward`"],
    ),
    "wrong rewards": (
        REWARDED + "tasks: [{pipeline: SFT}]\nEVALREWARD:\n"
        "  reward: [PPP, {step: SFT}, {step: RM, sed: 1}, 3, {step: RM, seed: -1}]\n",
        [
            "7:24: EVALREWARD.reward[1].step: `step` names the pipeline that trains the reward model",
            "7:41: EVALREWARD.reward[2].sed: unknown key (did you mean 'seed'?)",
            "7:50: EVALREWARD.reward[3]: a reward is a name, a Hub id",
            "7:70: EVALREWARD.reward[4].seed: a seed is a whole number",
        ],
    ),
    "unknown reward, second of an axis": (
        REWARDED + "tasks: [{pipeline: SFT}]\nEVALREWARD: {reward: [PP, PPP]}\n",
        ["6:27: EVALREWARD.reward[1]: no reward is called 'PPP' (did you mean 'PP'?)"],
    ),
    "reward model of an unknown model": (
        REWARDED + "tasks: [{pipeline: SFT}]\nEVALREWARD: {reward: {step: RM, model: tinny}}\n",
        ["6:40: EVALREWARD.reward.model: no model is called 'tinny' (did you mean 'tiny'?)"],
    ),
    "a reward of several models": (
        REWARDED.replace("[tiny]", "[tiny, Q0.5B]") + "tasks: [{pipeline: SFT}]\n",
        ["2:12: pipelines: all runs are scored by one reward model, and there are 2 models: name it"],
    ),
    "include with wrong values": (
        HEAD + "tasks: [{pipeline: SFT}]\ninclude:\n"
        "  - {pipeline: SFT, learning_rate: -1}\n"
        "  - {pipeline: SFT, seed: -3}\n"
        "  - {pipeline: DPOO}\n"
        "  - {pipeline: DPO, beta: 1, betta: 2}\n"
        "  - {model: tiny, learning_rat: 1}\n"
        "  - {pipeline: DPO, beta: 1, SFT.limt: 1}\n"
        "  - {model: Q9B}\n"
        "  - {SFT: {learning_rate: x}, pipeline: DPO, beta: 1}\n",
        [
            "7:36: include[0].learning_rate: should be greater than 0, not -1",
            "8:27: include[1].seed: a seed is a whole number",
            "9:16: include[2].pipeline: no method is called 'DPOO' (did you mean 'DPO'?)",
            "10:30: include[3].betta: unknown key (did you mean 'beta'?)",
            "11:19: include[4].learning_rat: unknown key (did you mean 'learning_rate'?)",
            "12:30: include[5].SFT.limt: unknown key (did you mean 'limit'?)",
            "13:5: include[6]: fits no run of the matrix",
            "14:27: include[7].SFT.learning_rate: should be a valid number, not 'x'",
        ],
    ),
    "include without what it needs": (
        HEAD + "tasks: [{pipeline: SFT}]\ninclude:\n  - {pipeline: DPO}\n  - {pipeline: DPO, beta: 1, model: Q9B}\n",
        [
            "7:5: include[0].beta: is required and missing: DPO needs beta",
            "8:37: include[1].model: no model is called 'Q9B'",
        ],
    ),
    "include of a method that is not listed": (
        HEAD.replace(", DPO", "") + "tasks: [{pipeline: SFT}]\ninclude: [{pipeline: DPO, beta: 1}]\n",
        ["6:22: include[0].pipeline: the training of DPO is not listed in `pipelines`"],
    ),
    "two experiments, one tag": (
        "- " + HEAD.replace("\n", "\n  ") + "tasks: [{pipeline: SFT}]\n"
        "- " + HEAD.replace("\n", "\n  ") + "tasks:\n  - {pipeline: SFT}\n  SFT: {batch_size: 8}\n",
        ["11:5: [1].tasks[0]: run SFT_tiny_playground_s0 of tag t already stands on line 5, with other steps"],
    ),
    "one error in each of two experiments": (
        "- " + HEAD.replace("\n", "\n  ") + "tasks: [{pipeline: DPO}]\n"
        "- " + HEAD.replace("\n", "\n  ") + "tasks: [{pipeline: DPO}]\n",
        ["5:11: [0].tasks[0].beta: is required and missing", "10:11: [1].tasks[0].beta: is required and missing"],
    ),
    "an experiment that is a word": ("- a\n- 1\n", ["1:3: [0]: should be a mapping", "2:3: [1]: should be a mapping"]),
    "a file that is a word": ("a\n", ["1:1: (top): should be an experiment"]),
    "an empty list": ("[]\n", ["1:1: (top): should be an experiment"]),
    "no experiments": (
        "experiments: []\nmodells: {}\n",
        ["1:14: experiments: should be a list", "2:1: modells: unknown key (did you mean 'models'?)"],
    ),
    "wrong tables": (
        "experiments:\n- " + HEAD.replace("\n", "\n  ") + "tasks: [{pipeline: SFT}]\n"
        "models:\n  a: {id: x/y, path: ./z}\n  b: {idd: x/y}\n  c: 5\n"
        "datasets:\n  d: {id: x/y, rul: U}\n  e: {id: x/y, rule: UU}\n"
        "  f: {id: x/y, limit: 0, eval_ratio: 1.0}\n  g: 3\n  h: {rule: U}\n"
        "rewards: []\n"
        "defaults: {SFT: {batch_size: 0}, sed: 1}\n",
        [
            "8:6: models.a: exactly one of id, path and build",
            "9:7: models.b.idd: unknown key (did you mean 'id'?)",
            "10:6: models.c: should be keys with values (`key: value`)",
            "12:16: datasets.d.rul: unknown key (did you mean 'rule'?)",
            "13:22: datasets.e.rule: no rule 'UU' (did you mean 'U'?)",
            "14:23: datasets.f.limit: should be greater than or equal to 1, not 0",
            "14:38: datasets.f.eval_ratio: should be less than 1, not 1.0",
            "15:6: datasets.g: should be a mapping or a name, not 3",
            "16:6: datasets.h: id, path or mix must say where the rows come from",
            "17:10: rewards: should be a mapping from names to entries",
            "18:30: experiments[0].SFT.batch_size: should be greater than or equal to 1, not 0",
            "18:34: experiments[0].sed: unknown key (did you mean 'seed'?)",
        ],
    ),
    "environment in tables": (
        "experiments:\n- " + HEAD.replace("\n", "\n  ") + "tasks: [{pipeline: SFT}]\n"
        "models:\n  a: {id: '${env:WHO}/y'}\n  b: '${env:HOME}/m'\n  c: {path: '${env:HOME}', template: '${env:T}'}\n",
        [
            "8:11: models.a.id: an environment variable may not decide what is hashed",
            "10:38: models.c.template: an environment variable may not decide what is hashed",
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_every_problem_at_its_place_and_all_at_once(name: str, problems: Problems) -> None:
    text, wanted = WRONG[name]
    said = [f"{each.line}:{each.col}: {show_path(each.path)}: {each.message}" for each in problems(text)]
    assert len(said) == len(wanted), said
    for one, beginning in zip(sorted(said), sorted(wanted), strict=True):
        assert one.startswith(beginning), said


def test_everything_in_one_file(problems: Problems) -> None:
    """Errors of the reader's later stages do not hide each other."""
    found = problems(
        "tag: 7\npipelines: [SFT, DOP]\nmodel: [tiny]\ndataset: [playground]\nseeds: 1\n"
        "tasks:\n  - {pipeline: DPO, beta: -1, gamma: 1}\n  - {pipeline: XPO}\nSFT: {optim: adam}\n"
    )
    assert [each.line for each in found] == [1, 2, 5, 7, 7, 8, 9]


RELEASED = (Path(__file__).parents[2] / "configs/examples/sail.yaml").read_text(encoding="utf-8")


def names(text: str, folder: Path, configs: Path) -> list[str]:
    file = folder / "tasks.yaml"
    file.write_text(text, encoding="utf-8")
    return [f"{run.tag}/{run.name}" for run in plan_file(file, configs).runs]


def test_the_released_form_and_its_equals(tmp_path: Path, configs: Path) -> None:
    """One mapping, a list of mappings, `experiments:` with everything beside it: the same runs and steps."""
    released = names(RELEASED, tmp_path, configs)
    assert released == [
        "tag1/DPO_Q0.5B_U0_beta0.1_s0",
        "tag1/DDP_Q0.5B_U0_beta0.1_r0.4_rho0.2_s0",
        "tag1/DPP_Q0.5B_U0_beta0.1_p0.3_pi0.2_s0",
        "tag1/DPR_Q0.5B_U0_beta0.1_g0.3_gamma0.3_s0",
        "tag1/DRO_DPR_Q0.5B_U0_beta0.1_dro0.3_omega0.3_s0",
    ]
    lines = [line for line in RELEASED.splitlines() if not line.startswith("#")]
    indented = "- " + "\n  ".join(lines) + "\n"
    assert names(indented, tmp_path, configs) == released
    assert names("experiments:\n" + indented, tmp_path, configs) == released
    assert names(indented + indented.replace("tag1", "tag2"), tmp_path, configs) == [
        *released,
        *(name.replace("tag1", "tag2") for name in released),
    ]


def test_experiments_with_tables_and_defaults(tmp_path: Path, configs: Path) -> None:
    text = """\
models: {m: {build: {kind: tiny, seed: 7}}}
datasets: {d: {rule: playground, gold: playground, seed: 3}}
rewards: {r: {id: some/reward, reverse: true}}
defaults: {pipelines: [SFT, GEN, EVALREWARD], seed: 5, SFT: {batch_size: 8, optim: sgd}, EVALREWARD: {reward: r}}
experiments:
  - {tag: a, model: m, dataset: d, tasks: [{pipeline: SFT}], SFT: {batch_size: 4}}
  - {tag: b, model: tiny, dataset: d, seed: [1, 2], tasks: {pipeline: SFT}}
"""
    file = tmp_path / "tasks.yaml"
    file.write_text(text, encoding="utf-8")
    plan = plan_file(file, configs)
    assert [f"{run.tag}/{run.name}" for run in plan.runs] == ["a/SFT_m_d_s5", "b/SFT_tiny_d_s1", "b/SFT_tiny_d_s2"]
    steps = list(plan.steps.values())
    trainings = [step for step in steps if step.pipeline == "SFT"]
    assert [step.params["batch_size"] for step in trainings] == [4, 8, 8]
    assert {step.params["optim"] for step in trainings} == {"sgd"}
    assert trainings[0].inputs["model"] == {"built": {"kind": "tiny", "seed": 7}}
    assert [step.params["seed"] for step in steps if step.pipeline == "PREP"] == [3]
    scores = [step for step in steps if step.pipeline == "EVALREWARD"]
    assert all(step.params["reverse"] is True and step.params["gold"] == "playground" for step in scores)


def test_anchors_and_merges_in_tasks(tmp_path: Path, configs: Path, problems: Problems) -> None:
    text = HEAD + "tasks:\n  - &a {pipeline: DPO, beta: 0.1}\n  - {<<: *a, beta: 0.3, learning_rate: 1e-6}\n"
    assert names(text, tmp_path, configs) == [
        "t/DPO_tiny_playground_beta0.1_s0",
        "t/DPO_tiny_playground_beta0.3_learning_rate1e-06_s0",
    ]
    wrong = HEAD + "tasks:\n  - &a {pipeline: DPO, beta: 0.1, hinge: 1}\n  - {<<: *a, beta: 0.3}\n"
    assert [(each.line, each.col) for each in problems(wrong)] == [(6, 35), (6, 35)]


def test_scalars_are_axes_of_one_point(tmp_path: Path, configs: Path) -> None:
    one = "tag: t\npipelines: SFT\nmodel: tiny\ndataset: playground\ntasks: {pipeline: SFT, learning_rate: 1e-4}\n"
    more = HEAD.replace(", DPO", "") + "tasks: [{pipeline: SFT, learning_rate: [1e-4]}]\n"
    assert names(one, tmp_path, configs) == names(more, tmp_path, configs)


TABLES = [
    (
        "models/names.yaml",
        "tiny: {build: {kind: tiny}}\nm: {pth: ./x}\n",
        "2:5: m.pth: unknown key (did you mean 'path'?)",
    ),
    ("datasets/preprocess.yaml", "d: {id: x/y, rule: U, limit: 1.5}\n", "1:30: d.limit: should be a valid integer"),
    ("datasets/preprocess.yaml", "d: {rule: playground, gold: other}\n", "1:29: d.gold: should be 'playground'"),
    ("models/reward.yaml", "U: {id: x/y, revers: true}\n", "1:14: U.revers: unknown key (did you mean 'reverse'?)"),
    ("models/lora_modules.yaml", "Q: [q, 3]\n", "1:8: Q[1]: should be a valid string"),
    ("evaluations/reward.yaml", "P: PPP\n", "1:4: P: no reward is called 'PPP' (did you mean 'PP'?)"),
    (
        "pipelines/optim.yaml",
        "defaults: {DPOO: {learning_rate: 1}}\n",
        "1:12: defaults.DPOO: no pipeline that trains is",
    ),
    ("pipelines/optim.yaml", "defaults: {DPO: {beta: 1}}\n", "1:18: defaults.DPO.beta: unknown key"),
    ("pipelines/optim.yaml", "learning_rate: {tiny: 0}\n", "1:23: learning_rate.tiny: should be greater than 0"),
    ("pipelines/optim.yaml", "lerning_rate: {}\n", "1:1: lerning_rate: unknown key (did you mean 'learning_rate'"),
]


@pytest.mark.parametrize(("table", "text", "wanted"), TABLES)
def test_wrong_tables_are_told_by_their_own_files(
    table: str, text: str, wanted: str, tmp_path: Path, configs: Path
) -> None:
    (configs / table).parent.mkdir(exist_ok=True)
    (configs / table).write_text(text, encoding="utf-8")
    (tmp_path / "tasks.yaml").write_text(HEAD + "tasks: [{pipeline: SFT}]\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        plan_file(tmp_path / "tasks.yaml", configs)
    said = [str(each) for each in caught.value.problems]
    assert any(each.startswith(f"{configs / table}:{wanted}") for each in said), said


def test_initials_are_understood() -> None:
    assert suggest("lr", ["lora", "learning_rate", "limit"]) == " (did you mean 'learning_rate'?)"
    assert suggest("bata", ["beta", "batch_size"]) == " (did you mean 'beta'?)"
