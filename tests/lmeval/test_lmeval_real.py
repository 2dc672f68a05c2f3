"""LMEVAL with a real lm-evaluation-harness, in the environment that `make lm-eval-env` makes."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import local_tasks as local
import pyarrow.parquet as pq
import pytest

from cdpo.config.devices import Devices
from cdpo.engine.process import identity, is_alive
from cdpo.errors import StepError
from cdpo.files import read_json, read_json_lines
from cdpo.pipelines.lmeval import check, run
from cdpo.step import Device, Step
from tests.conftest import ROOT, run_cdpo, write_project
from tests.hub.hub_content import fill
from tests.hub.hub_server import Hub

ENVIRONMENT = ROOT / ".venv-lm-eval"
PYTHON = str(ENVIRONMENT / "bin" / "python")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ENVIRONMENT / "ready").exists(), reason="no .venv-lm-eval: `make lm-eval-env`"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local.build_model(tmp_path_factory.mktemp("lmeval") / "model")


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    return local.build_adapter(model, model.parent / "adapter")


@pytest.fixture(scope="module")
def tasks(model: Path) -> Path:
    return local.write_tasks(model.parent / "tasks", model)


@pytest.fixture
def make_step(tmp_path: Path, model: Path, tasks: Path) -> Callable[..., Step]:
    def make(name: str, listed: list[str], adapter: Path | None = None, **params: Any) -> Step:
        inputs = {"model": str(model), "include_path": str(tasks)} | (
            {"model_adapter": str(adapter)} if adapter else {}
        )
        device = Device(lm_eval={"python": PYTHON}, micro_batch=5)
        step = Step("LMEVAL", "0" * 64, name, {"tasks": listed, **params}, inputs, None, device, tmp_path / name)
        step.out.mkdir(parents=True)
        described = {each: getattr(step, each) for each in ("pipeline", "key", "name", "params", "inputs", "seed")}
        (step.work / "step.json").write_text(json.dumps({**described, "device": dataclasses.asdict(device)}))
        return step

    return make


def columns(step: Step) -> dict[str, dict[str, float]]:
    """The values of each metric by document."""
    rows = pq.read_table(step.out / "scores.parquet").to_pylist()
    names = [name for name in rows[0] if name not in ("split", "prompt_id")]
    return {name: {row["prompt_id"]: row[name] for row in rows if row[name] is not None} for name in names}


@pytest.mark.parametrize("trained", [False, True])
def test_every_document_is_judged_as_transformers_alone_would(
    make_step: Callable[..., Step], model: Path, adapter: Path, tasks: Path, trained: bool
) -> None:
    step = make_step("s", ["my_choice", "my_words"], adapter if trained else None)
    report = run(step)
    known = local.Known(model, adapter if trained else None)
    choices, words = local.read(tasks / "data/choices.jsonl"), local.read(tasks / "data/words.jsonl")
    picked = [known.picks(doc) for doc in choices]
    assert 0 < sum(right for right, _ in picked) < len(picked)
    found = columns(step)
    assert found == {
        "lm_eval/my_choice/acc": {f"my_choice:{at}": float(right) for at, (right, _) in enumerate(picked)},
        "lm_eval/my_choice/acc_norm": {f"my_choice:{at}": float(right) for at, (_, right) in enumerate(picked)},
        "lm_eval/my_words/exact_match": {
            f"my_words:{at}": float(known.writes(doc["question"], 6) == doc["answer"]) for at, doc in enumerate(words)
        },
    }
    assert set(found["lm_eval/my_words/exact_match"].values()) == ({0.0} if trained else {0.0, 1.0})
    assert report["metrics"] == {name: name for name in found}
    whole = read_json(step.out / "results.json")
    for name, values in found.items():
        _, task, metric = name.split("/")
        assert whole["results"][task][f"{metric},none"] == pytest.approx(sum(values.values()) / len(values))
    assert whole["lm_eval_version"] == report["lm_eval_version"]
    assert whole["versions"] == report["versions"] == {"my_choice": 1.5, "my_words": 0}
    seeds = {name: whole["config"][f"{name}_seed"] for name in ("random", "numpy", "torch", "fewshot")}
    assert seeds == {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
    assert whole["config"]["model_dtype"] == "torch.float32"
    assert "samples" not in whole
    assert "pretty_env_info" not in whole
    logged = local.read(step.out / "samples" / "my_choice.jsonl")
    assert [each["doc"] for each in logged] == choices
    # nothing is written beside the tasks
    assert sorted(path.name for path in tasks.iterdir() if path.suffix != ".yaml") == ["data"]


@pytest.mark.parametrize("template", [None, "plain"])
def test_as_a_conversation(make_step: Callable[..., Step], model: Path, tasks: Path, template: str | None) -> None:
    """With the tokenizer's template, and with one of cdpo's in its place."""
    from cdpo.models import load_tokenizer

    step = make_step("s", ["my_choice"], apply_chat_template=True, template=template, limit=12, system_instruction="of")
    run(step)
    tokenizer, known = load_tokenizer(model, None, template), local.Known(model)

    def ask(question: str) -> str:
        turns = [{"role": "system", "content": "of"}, {"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    docs = local.read(tasks / "data/choices.jsonl")[:12]
    assert [*columns(step)["lm_eval/my_choice/acc"].values()] == [float(known.picks(doc, ask)[0]) for doc in docs]


def test_a_group_is_the_documents_of_its_tasks(make_step: Callable[..., Step]) -> None:
    step = make_step("s", ["my_group", "my_texts"], num_fewshot=0)
    report = run(step)
    found, whole = columns(step), read_json(step.out / "results.json")
    assert report["metrics"] == {"lm_eval/my_group/acc": "lm_eval/my_group/acc"}
    assert len(found["lm_eval/my_group/acc"]) == 34
    assert {**found["lm_eval/my_choice/acc"], **found["lm_eval/my_other/acc"]} == found["lm_eval/my_group/acc"]
    assert report["means"]["lm_eval/my_group/acc"] == pytest.approx(whole["groups"]["my_group"]["acc,none"])
    # a perplexity is no mean over documents
    assert "word_perplexity,none" in whole["results"]["my_texts"]
    assert not any("perplexity" in name for name in found)
    (note,) = (each["text"] for each in read_json_lines(step.work / "events.jsonl") if each["event"] == "note")
    assert note == "no mean over documents, and so in results.json alone: lm_eval/my_texts/word_perplexity"


def child_of(pid: int) -> int | None:
    """The process that runs lm-eval for `pid` now."""
    found = subprocess.run(
        ["pgrep", "-P", str(pid), "-f", "lmeval/process.py"], capture_output=True, text=True, check=False
    )
    return int(found.stdout.split()[0]) if found.stdout.split() else None


def test_a_killed_step_goes_on(make_step: Callable[..., Step]) -> None:
    """What is finished is not evaluated again, answers of the task that was cut are kept, and no process stays."""
    listed = ["my_choice", "my_other", "my_words"]
    whole, cut = make_step("whole", listed), make_step("cut", listed)
    run(whole)
    process = subprocess.Popen([sys.executable, "-m", "cdpo.pipelines.lmeval", str(cut.work)], cwd=ROOT)
    first = cut.checkpoints / "results-my_choice.json"
    child = None
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline and not first.exists():
        child = child_of(process.pid) or child
        time.sleep(0.002)
    assert child is not None
    who = identity(child)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while is_alive(who) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(who)
    assert first.exists()
    # the second task was cut: of its answers two whole lines are there and the beginning of a third
    for task in listed[1:]:
        (cut.checkpoints / f"results-{task}.json").unlink(missing_ok=True)
    (answers,) = cut.checkpoints.glob("answers-*.jsonl")
    lines = next(iter(whole.checkpoints.glob("answers-*.jsonl"))).read_bytes().splitlines(keepends=True)
    assert len(lines) == 34 * 4
    answers.write_bytes(b"".join(lines[: 24 * 4 + 2]) + lines[24 * 4 + 2][:9])
    stamp = first.stat().st_mtime_ns
    run(cut)
    assert first.stat().st_mtime_ns == stamp
    assert "going on after 1 of 3 tasks" in [each.get("text") for each in read_json_lines(cut.work / "events.jsonl")]
    # each was computed once; other batches round in their own way
    once, wanted = (sorted(map(json.loads, each)) for each in (answers.read_bytes().splitlines(), lines))
    assert [each[0] for each in once] == [each[0] for each in wanted]
    assert [each[1] for each in once] == pytest.approx([each[1] for each in wanted], abs=1e-4)
    assert columns(cut) == columns(whole)


def test_results_of_another_version_are_made_again(make_step: Callable[..., Step]) -> None:
    step = make_step("s", ["my_other"])
    run(step)
    file = step.checkpoints / "results-my_other.json"
    found = read_json(file)
    file.write_text(json.dumps({**found, "lm_eval_version": "0.4.12", "results": {"my_other": {"acc,none": 0.5}}}))
    again = make_step("again", ["my_other"])
    step.checkpoints.rename(again.checkpoints)
    run(again)
    assert columns(again) == columns(step)
    assert read_json(again.out / "results.json")["results"] == found["results"]


def test_what_lm_eval_cannot_load_is_told_with_what_to_do(make_step: Callable[..., Step], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    text = local.CHOICE.replace("json\n", "nobody/has-this\n", 1).replace("data_files: {test: data/choices.jsonl}", "")
    (tmp_path / "mine" / "absent.yaml").write_text(text.replace("my_choice", "absent"))
    step = make_step("s", ["absent"])
    step.inputs = {**step.inputs, "include_path": str(tmp_path / "mine")}
    with pytest.raises(StepError, match=r"lm-eval cannot evaluate absent: .*nobody/has-this") as raised:
        run(step)
    command = str(raised.value).splitlines()[-1].strip()
    assert command == (
        f'{PYTHON} -c "from lm_eval.tasks import TaskManager; '
        f"TaskManager(include_path='{tmp_path / 'mine'}').load(['absent'])\""
    )
    assert "Traceback" in (step.work / "lm_eval.log").read_text()


def test_data_of_the_hub_is_fetched_once_as_the_step_says(
    make_step: Callable[..., Step], tmp_path: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    text = local.CHOICE.replace("json\n", "lab/choices\n", 1).replace("data_files: {test: data/choices.jsonl}", "")
    (tmp_path / "mine" / "online.yaml").write_text(text.replace("my_choice", "online"))
    with Hub(tmp_path / "hub") as hub:
        fill(hub, "datasets", "lab/choices", {"test.jsonl": (tasks / "data/choices.jsonl").read_bytes()})
        environment = hub.environment(tmp_path / "cache", None)
        for name in ("HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
            if name in environment:
                monkeypatch.setenv(name, environment[name])
        step = make_step("s", ["online"])
        step.inputs = {**step.inputs, "include_path": str(tmp_path / "mine")}
        with pytest.raises(StepError, match="lm-eval cannot evaluate online") as raised:
            run(step)
        asked = len(hub.requests)
        command = str(raised.value).splitlines()[-1].strip()
        subprocess.run(command, shell=True, check=True, capture_output=True, env=environment)
        assert len(hub.requests) > asked
        asked = len(hub.requests)
        run(step)
        # a step asks nobody
        assert len(hub.requests) == asked
    whole = make_step("whole", ["my_choice"])
    run(whole)
    assert [*columns(step)["lm_eval/online/acc"].values()] == [*columns(whole)["lm_eval/my_choice/acc"].values()]


def test_the_command_that_fetches_is_one(tasks: Path) -> None:
    from cdpo.lmeval.harness import how_to_fetch

    command = how_to_fetch(PYTHON, "my_choice", tasks)
    subprocess.run(command, shell=True, check=True, cwd=tasks, capture_output=True)


def test_from_the_tasks_file_to_a_comparison(tmp_path: Path, model: Path, tasks: Path) -> None:
    """Two models, each task's documents paired; unknown tasks are refused before anything runs."""
    other = local.build_model(tmp_path / "other", seed=1)
    text = f"""\
tag: bench
pipelines: [LMEVAL]
model: ["{model}", "{other}"]
dataset: [small]
tasks: [{{pipeline: BASE}}]
LMEVAL: {{tasks: [[my_choice, my_words, helaswag]], include_path: "{tasks}", limit: 20}}
"""
    datasets = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"
    devices = f"lm_eval: {{python: {PYTHON}}}\n"
    folder = write_project(tmp_path / "project", text, datasets=datasets, devices=devices)
    refused = run_cdpo("prep", cwd=folder, check=None)
    assert refused.returncode != 0
    assert "lm-eval has no task 'helaswag' (did you mean 'hellaswag'" in refused.stderr
    (folder / "configs" / "tasks.yaml").write_text(text.replace(", helaswag", ""))
    run_cdpo("prep", cwd=folder)
    run_cdpo("execute", "--display", "plain", cwd=folder)
    runs = json.loads(run_cdpo("results", "--json", cwd=folder).stdout)["runs"]
    docs = local.read(tasks / "data/choices.jsonl")[:20]
    right = {place: [float(local.Known(place).picks(doc)[0]) for doc in docs] for place in (model, other)}
    for run_found, place in zip(runs, (model, other), strict=True):
        found = run_found["metrics"]["lm_eval/my_choice/acc"]
        assert (found["mean"], found["n"]) == (pytest.approx(sum(right[place]) / 20), 20)
        assert 0 <= found["low"] < found["mean"] < found["high"] <= 1
    said = json.loads(run_cdpo("compare", *(each["name"] for each in runs), "--json", cwd=folder).stdout)
    difference = said["metrics"]["lm_eval/my_choice/acc"]
    pairs = [*zip(right[model], right[other], strict=True)]
    assert difference["difference"] == pytest.approx(sum(a - b for a, b in pairs) / 20)
    assert [difference[name] for name in ("wins", "ties", "losses", "unpaired")] == [
        sum(a > b for a, b in pairs),
        sum(a == b for a, b in pairs),
        sum(a < b for a, b in pairs),
        0,
    ]
    assert "lm_eval/my_words/exact_match" in said["metrics"]
    ok = [line for line in run_cdpo("doctor", cwd=folder, check=None).stdout.splitlines() if "lm-eval" in line]
    assert len(ok) == 1
    assert ok[0].startswith("ok")


def test_a_standard_task_is_known_by_its_name() -> None:
    from cdpo.plan.graph import PlannedStep

    step = PlannedStep("0" * 64, "LMEVAL", "s", 1, {"tasks": ["hellaswag", "mmlu", "no_such_task_at_all"]}, {}, None)
    (problem,) = check([step], Devices.model_validate({"lm_eval": {"python": PYTHON}}))
    assert problem.startswith("LMEVAL: lm-eval has no task 'no_such_task_at_all'")
    assert problem.endswith("; `include_path` names a folder with tasks of your own")
