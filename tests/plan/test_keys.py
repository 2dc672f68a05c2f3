"""What a step's key depends on, and what it does not; which steps runs share."""

import os
import shutil
import time
from pathlib import Path

import pytest
from planning import ROWS, Folder, counts, experiment, keys, of

from cdpo.plan.graph import Plan

WHOLE = "[SFT, RM, DPO, GEN, EVALREWARD]"
#: what a change of SFT reaches, and of a reward model
SFT_ON = {"SFT", "REFERENCE", "DPO", "GEN", "EVALREWARD"}
SCORES = {"EVALREWARD_CHOSEN", "EVALREWARD"}
ON_DATA = {"PREP", *SFT_ON, *SCORES}


def by_name(plan: Plan) -> dict[tuple[str, str], str]:
    return {(step.pipeline, step.name): step.key for step in plan.steps.values()}


def test_two_models_three_settings_two_seeds(folder: Folder) -> None:
    text = experiment("{pipeline: DPO, beta: [0.1, 0.3, 1]}", model="[tiny, Q0.5B]", seed="[0, 1]")
    plan = folder.plan(text)
    assert counts(plan) == {"PREP": 1, "SFT": 4, "REFERENCE": 4, "DPO": 12}
    assert len(plan.runs) == 12


def test_a_pinned_seed_makes_one_sft_for_many_dpo(folder: Folder) -> None:
    plan = folder.plan(experiment("{pipeline: DPO, beta: 0.1}", "SFT: {seed: 0}\n", seed="[0, 1, 2]"))
    assert counts(plan) == {"PREP": 1, "SFT": 1, "REFERENCE": 1, "DPO": 3}
    assert [step.seed for step in of(plan, "DPO")] == [0, 1, 2]


def test_everyone_is_scored_by_one_reward_model(folder: Folder) -> None:
    text = experiment(
        "{pipeline: BASE}, {pipeline: SFT}, {pipeline: DPO, beta: [1, 2]}", pipelines=WHOLE, seed="[3, 4]"
    )
    plan = folder.plan(text)
    shared = {"REFERENCE": 2, "EVALREWARD_CHOSEN": 1}
    assert counts(plan) == {"PREP": 1, "SFT": 2, "RM": 1, "DPO": 4, "GEN": 8, "EVALREWARD": 8, **shared}
    assert of(plan, "RM")[0].seed == 3


def test_editing_one_beta_changes_only_its_cone(folder: Folder) -> None:
    text = experiment("{pipeline: SFT}, {pipeline: DPO, beta: [0.1, 0.3]}", pipelines=WHOLE, seed="[0, 1]")
    before, after = folder.plan(text), folder.plan(text.replace("0.3", "0.4"))
    gone = {key: step for key, step in before.steps.items() if key not in after.steps}
    assert sorted(step.pipeline for step in gone.values()) == sorted(["DPO", "GEN", "EVALREWARD"] * 2)
    assert all("beta0.3" in step.name for step in gone.values())


def test_adding_a_seed_or_a_row_keeps_every_key(folder: Folder) -> None:
    text = experiment("{pipeline: DPO, beta: [0.1]}", pipelines=WHOLE, seed="[0, 1]")
    before = keys(folder.plan(text))
    assert before < keys(folder.plan(text.replace("[0, 1]", "[0, 1, 2]")))
    assert before < keys(folder.plan(text.replace("tasks: [", "tasks: [{pipeline: SFT}, {pipeline: DPO, beta: 9}, ")))
    assert before < keys(folder.plan(text.replace("[0.1]", "[0.05, 0.1]")))
    assert before == keys(folder.plan(text + "SFT: {}\n"))


def test_a_step_reads_what_stands_before_it(folder: Folder) -> None:
    text = experiment("{pipeline: DPO, beta: 0.1}", pipelines=WHOLE)
    before = by_name(folder.plan(text))
    for more, changed in {
        "PREP: {tune_ratio: 0.1}": {"PREP", "RM", *SFT_ON, *SCORES},
        "SFT: {batch_size: 8}": SFT_ON,
        "RM: {batch_size: 8}": {"RM", *SCORES},
        "GEN: {top_k: 8}": {"GEN", "EVALREWARD"},
        "GEN: {limit: 8}": {"GEN", *SCORES},
        "EVALREWARD: {dtype: fp32}": SCORES,
        "DPO: {batch_size: 8}": {"DPO", "GEN", "EVALREWARD"},
        "DPO: {dtype: bf16}": {"REFERENCE", "DPO", "GEN", "EVALREWARD"},
    }.items():
        after = by_name(folder.plan(text + more + "\n"))
        assert {pipeline for pipeline, name in before if before[pipeline, name] != after[pipeline, name]} == changed


@pytest.mark.fault(27)
@pytest.mark.parametrize("beta", ["1", "1.0", "1e0", "+1", "10e-1", "0x1"])
def test_equal_numbers_are_one_key(folder: Folder, beta: str) -> None:
    one = folder.plan(experiment("{pipeline: DPO, beta: 1}"))
    same = folder.plan(experiment(f"{{pipeline: DPO, beta: {beta}}}"))
    assert keys(one) == keys(same)
    assert one.runs == same.runs or one.runs[0].steps == same.runs[0].steps
    assert one.runs[0].name == same.runs[0].name


def test_what_equals_the_default_is_not_hashed(folder: Folder) -> None:
    bare = folder.plan(experiment("{pipeline: DPO, beta: 0.1}"))
    written = experiment("{pipeline: DPO, beta: 0.1, loss_type: sigmoid, batch_size: 32, lora: false, max_steps: null}")
    assert keys(folder.plan(written)) == keys(bare)
    table = experiment("{pipeline: DPO, beta: 0.1, learning_rate: 1e-5, num_train_epochs: 1}")
    assert keys(folder.plan(table)) == keys(bare)
    spelt = experiment("{pipeline: DPO, beta: 0.1, lora: {r: 16}}")
    assert (
        keys(folder.plan(spelt))
        == keys(folder.plan(experiment("{pipeline: DPO, beta: 0.1, lora: true}")))
        != keys(bare)
    )


def test_tag_order_devices_and_comments_do_not_count(folder: Folder) -> None:
    text = experiment("{pipeline: DPO, beta: [0.1, 0.3]}, {pipeline: SFT}", pipelines=WHOLE, seed="[0, 1]")
    before = by_name(folder.plan(text))
    folder.table("devices.yaml", "gpus: []\npipelines: {DPO: {processes: 2, micro_batch: 1}}\nreport_to: wandb\n")
    turned = experiment("{pipeline: SFT}, {beta: [0.3, 0.1], pipeline: DPO}", pipelines=WHOLE, seed="[0, 1]")
    lines = turned.splitlines(keepends=True)
    assert by_name(folder.plan("# another\n" + "".join(reversed(lines)).replace("tag: t", "tag: u"))) == before
    # the reward model is seeded with the first seed, so that the order of seeds decides it, and it alone
    other = by_name(folder.plan(text.replace("seed: [0, 1]", "seed: [1, 0]")))
    assert {pipeline for pipeline, name in before if before[pipeline, name] != other.get((pipeline, name))} == {
        "RM",
        *SCORES,
    }


# -- files and tables ---------------------------------------------------------------------------------------------


def local(folder: Folder, more: str = "") -> Plan:
    """Two datasets of local files and two local models, over everything."""
    text = f"""\
models: {{m: ./m, n: ./n}}
datasets:
  a: {{path: "./data/a*.jsonl", rule: preference}}
  b: {{path: ./data/b.jsonl, eval_path: ./data/b_eval.jsonl, rule: preference}}
experiments:
- {{tag: t, pipelines: [SFT, GEN], model: [m, n], dataset: [a, b], tasks: [{{pipeline: SFT}}]{more}}}
"""
    folder.tasks = folder.path / "tasks.yaml"
    return folder.plan(text)


@pytest.fixture
def files(folder: Folder) -> Folder:
    for name in ("a1", "a2", "b", "b_eval"):
        folder.write(f"data/{name}.jsonl", ROWS)
    for name in "mn":
        folder.model(name, weights=name)
    return folder


def same_size_and_time(path: Path) -> None:
    """Change one byte, and give the file back the times it had."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("data/a2.jsonl", {"a", "m_a_s0", "n_a_s0", "SFT_m_a_s0", "SFT_n_a_s0"}),
        ("data/b_eval.jsonl", {"b", "m_b_s0", "n_b_s0", "SFT_m_b_s0", "SFT_n_b_s0"}),
        ("m/model.safetensors", {"m_a_s0", "m_b_s0", "SFT_m_a_s0", "SFT_m_b_s0"}),
    ],
)
def test_one_byte_of_a_file_changes_what_reads_it_and_nothing_else(files: Folder, file: str, changed: set[str]) -> None:
    before = local(files)
    same_size_and_time(files.path / file)
    # as a later command does: what an earlier plan knew of its files is given
    settled = {name: {**each, "seen_ns": each["ctime_ns"] + 10**10} for name, each in before.files.items()}
    for known in ({}, before.files, settled):
        now = by_name(local_known(files, known))
        assert {name for (pipeline, name), key in by_name(before).items() if now[pipeline, name] != key} == changed


def local_known(folder: Folder, known: dict[str, dict[str, object]]) -> Plan:
    from cdpo.plan.build import plan_file

    return plan_file(folder.tasks, folder.configs, known)


def test_an_unchanged_file_is_not_read_again(files: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = local(files)
    record = {name: {**each, "seen_ns": time.time_ns() + 10**10} for name, each in before.files.items()}
    read: list[Path] = []
    monkeypatch.setattr("cdpo.plan.references.file_sha256", lambda path: read.append(path) or "0" * 64)
    assert keys(local_known(files, record)) == keys(before)
    assert read == []
    # a record that was taken right after the file's last change proves nothing
    local_known(files, before.files)
    assert {path for path in read if path.is_relative_to(files.path)} == set(files.path.rglob("*.*")) - {files.configs}


def test_a_new_file_under_a_glob_changes_the_data(files: Folder) -> None:
    before = keys(local(files), "PREP")
    files.write("data/a3.jsonl", ROWS)
    assert len(before & keys(local(files), "PREP")) == 1


def test_the_place_of_a_project_does_not_count(files: Folder, tmp_path: Path) -> None:
    before = local(files)
    shutil.copytree(files.path, tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere/data", tmp_path / "elsewhere/rows")
    other = Folder.__new__(Folder)
    other.path, other.configs = tmp_path / "elsewhere", tmp_path / "elsewhere/configs"
    other.tasks = other.path / "tasks.yaml"
    text = other.tasks.read_text().replace("./data", "./rows")
    assert keys(other.plan(text)) == keys(before)


def test_the_place_of_a_path_may_come_from_the_environment(files: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = local(files)
    monkeypatch.setenv("ROWS_OF_THE_TEST", str(files.path / "data"))
    text = files.tasks.read_text().replace("./data/b.jsonl", "'${env:ROWS_OF_THE_TEST}/b.jsonl'")
    assert keys(files.plan(text)) == keys(before)


TABLE_TEXT = experiment(
    "{pipeline: SFT}, {pipeline: DPO, beta: 0.1, lora: true}",
    model="[one, two]",
    dataset="[d, e]",
    pipelines="[SFT, DPO, GEN, EVALREWARD]",
)
TABLES = {
    "models/names.yaml": "one: {id: a/one, template: plain}\ntwo: a/two\nthree: a/three\n",
    "models/reward.yaml": "R: {id: a/reward, template: inst}\nS: {id: a/other, reverse: false}\n",
    "models/lora_modules.yaml": "o: [q_proj]\non: [k_proj]\nt: all-linear\nx: [z]\n",
    "evaluations/reward.yaml": "d: R\ne: S\n",
    "datasets/preprocess.yaml": "d: {id: a/d, rule: U}\ne: {id: a/e, rule: U}\nf: {id: a/f, rule: U}\n",
    "pipelines/optim.yaml": "defaults: {SFT: {learning_rate: 2e-5, num_train_epochs: 2}, "
    "DPO: {learning_rate: 1e-5}, DPR: {learning_rate: 1e-5}, RM: {learning_rate: 1}}\n"
    "num_train_epochs: {d: 2, x: 3}\nlearning_rate: {two: 3}\n",
}
CHANGES: list[tuple[str, str, str, set[str], str, str]] = [
    # table, what is written, what instead, pipelines whose keys change, and for which model and dataset ("" for all)
    ("models/names.yaml", "a/one", "a/uno", SFT_ON, "one", ""),
    ("models/names.yaml", "template: plain", "template: inst", SFT_ON, "one", ""),
    ("models/names.yaml", "a/three", "a/tres", set(), "", ""),
    ("models/reward.yaml", "a/reward", "a/punishment", SCORES, "", "d"),
    ("models/reward.yaml", "template: inst", "template: plain", SCORES, "", "d"),
    ("models/reward.yaml", "reverse: false", "reverse: true", SCORES, "", "e"),
    ("evaluations/reward.yaml", "d: R", "d: S", SCORES, "", "d"),
    ("models/lora_modules.yaml", "k_proj", "v_proj", {"DPO"}, "one", ""),
    ("models/lora_modules.yaml", "q_proj", "v_proj", set(), "", ""),
    ("models/lora_modules.yaml", "z", "y", set(), "", ""),
    ("datasets/preprocess.yaml", "a/e", "a/ee", ON_DATA, "", "e"),
    (
        "datasets/preprocess.yaml",
        "{id: a/d, rule: U",
        "{id: a/d, limit: 9, rule: U",
        {"PREP", *SFT_ON, *SCORES},
        "",
        "d",
    ),
    ("datasets/preprocess.yaml", "a/f", "a/ff", set(), "", ""),
    ("pipelines/optim.yaml", " DPO: {learning_rate: 1e-5", " DPO: {learning_rate: 3e-5", {"DPO"}, "", ""),
    ("pipelines/optim.yaml", "learning_rate: 2e-5", "learning_rate: 3e-5", SFT_ON, "", ""),
    ("pipelines/optim.yaml", "num_train_epochs: 2}", "num_train_epochs: 3}", SFT_ON, "", ""),
    ("pipelines/optim.yaml", "RM: {learning_rate: 1}", "RM: {learning_rate: 2}", set(), "", ""),
    ("pipelines/optim.yaml", "{d: 2", "{d: 3", SFT_ON, "", "d"),
    ("pipelines/optim.yaml", "{two: 3}", "{two: 4}", SFT_ON, "two", ""),
]


@pytest.mark.fault(27)
@pytest.mark.parametrize(("table", "written", "instead", "pipelines", "model", "dataset"), CHANGES)
def test_one_value_of_a_table_changes_exactly_what_uses_it(
    folder: Folder, table: str, written: str, instead: str, pipelines: set[str], model: str, dataset: str
) -> None:
    for name, text in TABLES.items():
        folder.table(name, text)
    before = folder.plan(TABLE_TEXT)
    assert TABLES[table].count(written) == 1
    folder.table(table, TABLES[table].replace(written, instead))
    after = folder.plan(TABLE_TEXT)
    # steps of runs by (model, dataset, position), so that a change of one shows as a change of that one
    for one, other in zip(before.runs, after.runs, strict=True):
        touched = (not model or one.model == model) and (not dataset or one.dataset == dataset)
        directly = {
            before.steps[a].pipeline for a, b in zip(one.steps, other.steps, strict=True) if a != b
        }  # fmt: skip
        expected = set(pipelines) if touched else set()
        if "DPO" in expected and "SFT" not in expected:  # a change of DPO reaches what stands after it in its runs only
            expected = {"DPO", "GEN", "EVALREWARD"} if one.method == "DPO" else set()
        have = {before.steps[key].pipeline for key in one.steps}
        assert directly == expected & have, one.name


def test_multipliers_apply_to_the_defaults_of_the_table_only(folder: Folder) -> None:
    for name, text in TABLES.items():
        folder.table(name, text)
    text = experiment(
        "{pipeline: DPO, beta: 1}, {pipeline: DPO, beta: 2, learning_rate: 1e-5, num_train_epochs: 1}",
        "SFT: {num_train_epochs: 5}\n",
        model="[two]",
        dataset="[d]",
    )
    plan = folder.plan(text)
    (sft,) = of(plan, "SFT")
    assert (sft.params["learning_rate"], sft.params["num_train_epochs"]) == (pytest.approx(6e-5), 5.0)
    dpo = [(step.params["learning_rate"], step.params["num_train_epochs"]) for step in of(plan, "DPO")]
    # epochs stand in no table for DPO: the default in the code is not multiplied
    assert dpo == [(pytest.approx(3e-5), 1.0), (1e-5, 1.0)]


def test_adapters_get_the_layers_of_the_longest_beginning(folder: Folder) -> None:
    for name, text in TABLES.items():
        folder.table(name, text)
    tasks = "{pipeline: SFT, lora: [true, {r: 4}, {r: 5, target_modules: [mine]}, false]}"
    plan = folder.plan(experiment(tasks, model="[one, two, a/unlisted]", dataset="[d]"))
    found = [step.params["lora"] and step.params["lora"]["target_modules"] for step in of(plan, "SFT")]
    assert found == [
        *(["k_proj"], ["k_proj"], ["mine"], None),
        *("all-linear", "all-linear", ["mine"], None),
        *("all-linear", "all-linear", ["mine"], None),
    ]
    assert [step.params["template"] for step in of(plan, "SFT")] == ["plain"] * 4 + [None] * 8


def test_a_written_template_stands_over_the_tables(folder: Folder) -> None:
    for name, text in TABLES.items():
        folder.table(name, text)
    plan = folder.plan(
        experiment("{pipeline: SFT, template: inst}", model="[one]", dataset="[d]", pipelines="[SFT, GEN]")
    )
    assert [of(plan, name)[0].params["template"] for name in ("SFT", "GEN")] == ["inst", "plain"]


def test_the_policys_template_is_not_the_rewards(folder: Folder) -> None:
    for name, text in TABLES.items():
        folder.table(name, text)
    task = "{pipeline: DPR, beta: 1, g: 0.1, gamma: 1, reward: R}"
    plan = folder.plan(experiment(task, model="[one, two]", dataset="[d]"))
    assert [step.params["template"] for step in of(plan, "DPR")] == ["plain", None]
    assert [step.params["reward_template"] for step in of(plan, "DPR")] == ["inst", "inst"]
