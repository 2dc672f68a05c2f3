"""`cdpo label-bt`: Bradley-Terry labels for one dataset, as a matrix of one EVALREWARD_BT step.

What is labelled:
    a run that answered prompts (GEN)   `default`: the rows that it answered, with a column `response`; or a split of
                                        its data, or all of them
    any other run, a dataset            `default`: train; or another split, or all of them
The step is one of the store, shared with every other that labels the same data so: what is finished is not scored
again, and what was interrupted goes on.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cdpo.commands.matrix import refuse_unrunnable, say
from cdpo.commands.single import COMMAND_LINE
from cdpo.config.devices import Devices
from cdpo.config.experiment import experiments_of
from cdpo.config.tables import Tables, read_tables
from cdpo.config.yaml_reader import parse_yaml, plain_scalar
from cdpo.data.prepared import SPLITS
from cdpo.errors import UsageError
from cdpo.files import file_sha256, read_json
from cdpo.pipeline import MIXTURE, PREP
from cdpo.plan.build import PlanBuilder
from cdpo.plan.graph import Plan, PlannedStep
from cdpo.plan.names import safe
from cdpo.plan.references import References, UnknownReference
from cdpo.project import Project

PIPELINE = "EVALREWARD_BT"
DEFAULT_SPLIT = "default"
#: the tag of all labellings: a study's own tag has its runs alone
TAG = "label-bt"


@dataclass
class Labelling:
    """What was asked for, under the names of the released options."""

    run_name: str
    tag: str | None
    split: str | None
    process_all_splits: bool
    score_model_id: str
    bt_temperature: str
    reverse: bool
    per_device_evalreward_batch_size: int | None
    output: str | None

    @property
    def folder(self) -> Path:
        return Path(self.output or f"labelled/{safe(self.run_name)}_{safe(self.score_model_id)}")


@dataclass
class Source:
    """The data that is labelled."""

    dataset: str
    #: a run's prepared data; None where the dataset is still to be prepared
    prepared: PlannedStep | None = None
    #: out/ of the run's GEN step, and its parameters
    answers: Path | None = None
    answered: dict[str, Any] | None = None


def label(project: Project, asked: Labelling, display: Any) -> int:
    """Plan, score and write; returns the exit code. Raises UsageError for what cannot be labelled, before any work."""
    from cdpo.engine.engines import make_engine
    from cdpo.engine.show.display import make_display
    from cdpo.prepare import prepare

    if asked.process_all_splits and asked.split is not None:
        raise UsageError("--split and --process_all_splits: give one of them")
    tables = read_tables(project.configs)
    source = find_source(project, tables, asked)
    plan = project.fetched(lambda: plan_labels(project, read_tables(project.configs), asked, source), say)
    refuse_unrunnable(plan, None)
    key = plan.runs[0].steps[-1]
    if _taken(asked.folder) and project.store.find(key) is None:
        raise UsageError(f"{asked.folder} is there already and is never written over; name another folder: --output")
    room = next(folder for folder in asked.folder.absolute().parents if folder.exists())
    if not room.is_dir() or not os.access(room, os.W_OK):
        raise UsageError(f"{asked.folder} cannot be written: {room} takes no files; name another folder: --output")
    devices = _devices(project.devices(), asked.per_device_evalreward_batch_size)
    found = prepare(project, plan, devices, make_display(display))
    project.freeze(plan, found)
    outcome = make_engine(project.store, devices, make_display(display)).run(plan)
    if outcome.interrupted:
        say("interrupted; the same command goes on after the last finished score")
    finished = project.store.find(key)
    if outcome.exit_code or finished is None:
        return outcome.exit_code or 1
    answers = source.answers if _limits(asked, source) else None
    splits, new = write_labels(finished / "out", asked, answers, key)
    _report(finished / "out", asked, splits, new)
    return 0


# -- what is labelled -------------------------------------------------------------------------------------------------


def find_source(project: Project, tables: Tables, asked: Labelling) -> Source:
    """A run of this store by its name (and tag), else a dataset. Raises UsageError where it is neither."""
    refs = [ref for ref in project.store.read_refs(asked.tag) if ref["name"] == asked.run_name]
    if len(refs) > 1:
        raise UsageError(f"{asked.run_name} is a run of the tags {', '.join(ref['tag'] for ref in refs)}: add --tag")
    if refs:
        return _run_source(project, refs[0])
    under = f" under the tag {asked.tag}" if asked.tag else ""
    neither = f"{asked.run_name}: no run of {project.store.root} is called so{under}, and it is no dataset either"
    try:
        inputs, _, _ = References(tables, project.configs).dataset(asked.run_name)
    except UnknownReference as error:
        raise UsageError(f"{neither}: {error}") from None
    if asked.tag is not None and any("hub" in given for given in inputs.values()):
        raise UsageError(f"{neither} on this machine; a dataset of the Hub has no tag")
    return Source(asked.run_name)


def _run_source(project: Project, ref: dict[str, Any]) -> Source:
    """The data of a run, and its responses where it has them."""
    found = [folder for key in ref["steps"] if (folder := project.store.find(key)) is not None]
    answering = next((folder for folder in found if folder.parent.name == "GEN"), None)
    for folder in [*([answering] if answering else []), *reversed(found)]:
        data: Path | None = folder
        while data is not None and "data" in (planned := read_json(data / "step.json")["planned"]):
            data = project.store.find(planned["data"]["step"])
        if data is None or data.parent.name not in (PREP, MIXTURE):
            continue
        step = read_json(data / "step.json")
        prepared = PlannedStep(
            step["key"], data.parent.name, step["name"], step["version"], step["params"], {}, step["seed"]
        )
        if answering is None:
            return Source(ref["dataset"], prepared)
        return Source(ref["dataset"], prepared, answering / "out", read_json(answering / "step.json")["params"])
    raise UsageError(f"run {ref['name']} of tag {ref['tag']} has no data in {project.store.root} yet: execute it first")


def _limits(asked: Labelling, source: Source) -> dict[str, Any]:
    """The split and the number of rows that a run answered, where it is these that are asked for."""
    if asked.process_all_splits or asked.split not in (None, DEFAULT_SPLIT) or source.answered is None:
        return {}
    return {name: source.answered[name] for name in ("split", "limit") if source.answered.get(name) is not None}


def plan_labels(project: Project, tables: Tables, asked: Labelling, source: Source) -> Plan:
    """The plan of one EVALREWARD_BT step: the options as an experiment, checked like a file."""
    split = asked.split if asked.split not in (None, DEFAULT_SPLIT) else "train"
    task: dict[str, Any] = {"pipeline": PIPELINE, "reward": asked.score_model_id}
    task["bt_temperature"] = plain_scalar(asked.bt_temperature)
    if asked.reverse:
        task["reverse"] = True
    if not asked.process_all_splits:
        task |= _limits(asked, source) or {"split": split}
    experiment = {
        "tag": TAG,
        "pipelines": [PIPELINE],
        "model": [asked.score_model_id],
        "dataset": [source.dataset],
        "tasks": [task],
    }
    document = parse_yaml(yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True), COMMAND_LINE)
    builder = PlanBuilder(tables, References(tables, project.configs))
    builder.prepared = source.prepared
    for each in experiments_of(document, tables):
        each.names_all = True
        builder.add(each)
    return builder.plan(project.store.root / TAG)


def _devices(devices: Devices, batch_size: int | None) -> Devices:
    own = devices.of(PIPELINE)
    changes: dict[str, Any] = {"processes": 1} | ({"micro_batch": batch_size} if batch_size else {})
    return devices.model_copy(update={"pipelines": {**devices.pipelines, PIPELINE: own.model_copy(update=changes)}})


# -- what is written --------------------------------------------------------------------------------------------------


def _taken(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def write_labels(made: Path, asked: Labelling, answers: Path | None, key: str) -> tuple[list[str], bool]:
    """Write the labelled splits to the output folder, whole or not at all; returns them, and whether it is new.

    The folder holds <split>.parquet and labels.yaml, how they were made. Raises UsageError where it holds anything
    else already.
    """
    from cdpo.data.prepared import read_split, write_split
    from cdpo.generate.responses import read_responses

    target = asked.folder
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    said = None
    if answers is not None:
        rows = read_responses(answers)
        said = {row["prompt_id"]: row["response"] for row in reversed(rows)}
        if len(said) < len(rows):
            say(f"{len(rows)} responses to {len(said)} prompts: the first of each stands beside the labels")
    splits = [split for split in SPLITS if (made / f"{split}.parquet").exists()]
    try:
        for split in splits:
            rows = read_split(made, split)
            if said is not None:
                rows = [{**row, "response": said[row["prompt_id"]]} for row in rows if row["prompt_id"] in said]
            write_split(beside, split, rows)
        report = read_json(made / "report.json")
        about = {"run_name": asked.run_name, "score_model_id": asked.score_model_id, "step": key, **report}
        (beside / "labels.yaml").write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
        new = not _taken(target)
        if new:
            os.replace(beside, target)
        elif _contents(target) != _contents(beside):
            raise UsageError(f"{target} is there already, with other content; name another folder: --output")
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return splits, new


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}


def _report(made: Path, asked: Labelling, splits: list[str], new: bool) -> None:
    report = read_json(made / "report.json")
    for split in splits:
        found = report["splits"][split]
        said = f"{split}: {found['rows']} rows"
        if found["rows"]:
            said += (
                f", the chosen response scores higher in {found['accuracy']:.1%}, bt_prob within 0.001 of 0 or 1 in "
                f"{found['saturated']:.1%}, at a temperature of {report['bt_temperature']:.4g}"
            )
        say(said)
    where = asked.folder if asked.folder.is_absolute() else f"./{asked.folder}"
    say(f"{'written to' if new else 'already there:'} {asked.folder}; as a dataset: `dataset: [{where}]`")
    if len(splits) > 1:
        own = f"{{path: {where}/train.parquet, eval_path: {where}/eval.parquet, rule: preference}}"
        say(f"to keep its eval split, in configs/datasets/preprocess.yaml: {own}")
