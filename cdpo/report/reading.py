"""Reads what finished steps measured: for each run its metrics, prompt by prompt. No statistics here.

Of each step the index keeps its manifest, and which columns its rows have with their means (index.py). The rows
themselves are read when somebody asks for them, and only those of a few steps are held at once: a store of a thousand
runs does not fit into memory.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdpo.config.canonical import canonical_json
from cdpo.errors import DamagedFile
from cdpo.pipeline import GOLD, Pipeline, metric_name, pipelines
from cdpo.plan.identity import input_identity
from cdpo.report.columns import RowIds, read_columns
from cdpo.report.index import Index, index_of, look_of
from cdpo.stats.paired import Column, StoredColumn
from cdpo.store import Store
from cdpo.store.names import short
from cdpo.store.publish import MANIFEST

#: steps whose rows are held at once: those of a configuration under several seeds, and of what it is compared with
MOST_HELD = 32

#: where training metrics are read when nothing was generated, and where reward models are judged
EVAL = "eval"
#: what the metrics of lm-evaluation-harness begin with
LM_EVAL = "lm_eval/"
#: and those of which a judge gave the scores
JUDGED = ("judge/", "mt_bench/", "arena_hard/", "alpaca_eval/")
#: the kinds of resources that hold such metrics of an evaluation
EVALUATIONS = ("scores", "verdicts", "benchmark")
#: the mark of a run whose tasks file asks for it no more, or asks for something else under its name
STALE = "no longer in its tasks file; `cdpo clear` removes a tag's runs"


@dataclass(frozen=True)
class Metric:
    """One metric of one run, prompt by prompt."""

    column: Column
    split: str
    #: measured by a training step's final evaluation, not on responses
    training: bool
    #: equal for two runs exactly if their numbers are of the same kind: same reward, same split, same training pipeline
    meaning: str
    #: what its pipeline calls it, whatever it is called in a run that has several steps of that pipeline
    kind: str
    #: measured on a model by itself: there are no responses of a run, and no reward that scored them
    alone: bool = False
    #: over its rows
    mean: float = 0.0
    #: which rows these are: equal for metrics of the same column of the same step
    source: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure that a step worked out itself, because it is no mean over rows, with the interval that it gave."""

    mean: float
    low: float | None
    high: float | None
    n: int
    split: str
    #: as those of a metric
    kind: str
    alone: bool


#: the column of a comparison between two runs
WIN = "judge_win"
LENGTHS = ("length_first", "length_second")


@dataclass(frozen=True)
class Match:
    """What a judge said of the responses of two runs, prompt by prompt: 1 where `first` wins, 0.5 for a tie, 0."""

    judge: str
    #: equal for comparisons that were asked for in the same way
    meaning: str
    #: keys of the steps that answered
    first: str
    second: str
    split: str
    #: None where no verdict is there
    column: Column | None
    #: of both responses, in characters, by LENGTHS
    lengths: dict[str, Column]
    #: prompts that were judged, with and without a verdict
    prompts: int
    folder: Path
    judging: dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """A finished step that scored a run's responses."""

    folder: Path
    split: str
    #: as that of a metric: equal for two that score with the same reward in the same way
    meaning: str
    #: whether it is a cost model's, negated
    reverse: bool


@dataclass
class RunScores:
    """A run, as far as it has come."""

    name: str
    tag: str
    seed: int
    method: str
    model: str
    dataset: str
    params: dict[str, Any]
    steps: list[str]
    marks: list[str]
    state: str
    #: the finished steps in order: what kind of resource each gives, and its folder
    folders: list[tuple[str, Path]] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    #: key of the policy that the run's method trained, and of the one that it was trained from; None for none
    policy: str | None = None
    started_from: str | None = None
    #: that the training of its own method took; None where it has not trained
    training_seconds: float | None = None
    #: every value that the training of its own method had, whether it stands in the tasks file's task or elsewhere
    settings: dict[str, Any] = field(default_factory=dict)
    #: equal for runs that differ in nothing but their seeds
    recipe: str = ""
    #: equal for runs that are generated from and scored in the same way
    evaluation: str = ""
    #: how the run takes part in the choice of swept values (cdpo/plan/sweeps.py); None where all are shown
    select: dict[str, Any] | None = None
    #: key of the step that answered for the run; None where nothing was generated
    answers: str | None = None
    #: what is to be known of the judges that were asked about the run, in order
    judged: list[dict[str, Any]] = field(default_factory=list)
    #: by label, where several rewards score the run
    scored: dict[str, Scored] = field(default_factory=dict)
    #: training metrics on the splits that the run itself is not read on
    elsewhere: dict[str, dict[str, Metric]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.tag}/{self.name}"

    def on(self, split: str, metric: str) -> Metric | None:
        """A metric of the run on one split; None where it has none there."""
        own = self.metrics.get(metric)
        return own if own is not None and own.split == split else self.elsewhere.get(split, {}).get(metric)


@dataclass(frozen=True)
class _Finished:
    """A finished step."""

    key: str
    folder: Path
    pipeline: Pipeline
    manifest: dict[str, Any]
    #: of `out/scores.parquet`: split -> column -> mean over the rows that have a value; without any, none
    means: dict[str, dict[str, float]]
    #: its key, and how its files look: another once it is made again
    source: str


class Reader:
    """Reads every step once, however many runs share it."""

    def __init__(self, store: Store, index: Index | None = None) -> None:
        self.store = store
        self.index = index or index_of(store)
        self._folders = store.finished()
        self._steps: dict[str, _Finished | None] = {}
        self._columns: dict[tuple[str, str, str], StoredColumn] = {}
        self._rows: OrderedDict[str, dict[str, dict[str, Column]]] = OrderedDict()
        self._ids = RowIds()

    def run(self, ref: dict[str, Any]) -> RunScores:
        """The run that a ref of the store describes."""
        found = [self._step(key) for key in ref["steps"]]
        steps = [step for step in found if step is not None]
        names = ("name", "tag", "seed", "method", "model", "dataset", "params", "steps")
        run = RunScores(
            **{name: ref[name] for name in names},
            marks=[*ref.get("marks", ()), *([STALE] if ref.get("stale") else [])],
            recipe=ref.get("recipe", ""),
            select=None if ref.get("stale") else ref.get("select"),
            state="done" if len(steps) == len(found) else self._unfinished(ref["steps"]),
            folders=[(step.pipeline.gives, step.folder) for step in steps],
        )
        trained = next((step for step in reversed(steps) if step.pipeline.name == run.method), None)
        if trained is not None and trained.pipeline.gives == "policy":
            before = steps[: steps.index(trained)]
            run.policy = trained.key
            run.started_from = next((step.key for step in reversed(before) if step.pipeline.gives == "policy"), None)
        if trained is not None:
            run.training_seconds = float(trained.manifest["seconds"])
            run.settings = {name: value for name, value in trained.manifest["params"].items() if value is not None}
        split, evaluation = EVAL, []
        for step in steps:
            if step.pipeline.gives == "responses":
                split = step.manifest["params"].get("split", EVAL)
            if step.pipeline.gives == "responses":
                run.answers = step.key
            if step.pipeline.gives in ("responses", *EVALUATIONS):
                evaluation.append([step.pipeline.name, step.manifest["params"], _reward(step)])
        run.evaluation = canonical_json(evaluation)
        labels = ref.get("labels", {})
        for step in steps:
            if step.pipeline.gives not in EVALUATIONS:
                continue
            label = labels.get(step.key)
            run.metrics |= self._evaluation(step, split, label)
            if "answers_kept" in step.manifest["summary"]:
                run.judged.append(_judging(step))
            run.figures |= self._figures(step, split, label)
            if label is not None and step.pipeline.gives == "scores":
                reverse = bool(step.manifest["params"].get("reverse"))
                run.scored[label] = Scored(step.folder, split, _meaning(step, split), reverse)
        if trained is not None:
            run.metrics |= self._training(trained, split)
            if run.select is not None and (other := run.select["split"]) in trained.means:
                run.elsewhere[other] = self._training(trained, other)
        return run

    def _unfinished(self, keys: list[str]) -> str:
        """`failed` where a step of the run failed at its last attempt, else `unfinished`."""
        failed = any((self.store.work(key) / "failure.json").exists() for key in keys if self._step(key) is None)
        return "failed" if failed else "unfinished"

    def reward_models(self, runs: Iterable[RunScores]) -> list[RunScores]:
        """The reward models that were trained for `runs`, each once, as runs of one step."""
        found: dict[str, RunScores] = {}
        for run in runs:
            for key in run.steps:
                step = self._step(key)
                if step is None or step.pipeline.gives != "reward" or key in found:
                    continue
                seed = step.manifest.get("seed") or 0
                found[key] = RunScores(
                    step.manifest["name"],
                    run.tag,
                    seed,
                    step.pipeline.name,
                    run.model,
                    run.dataset,
                    {},
                    [key],
                    [],
                    "done",
                )
                found[key].metrics = self._training(step, EVAL)
        return list(found.values())

    def matches(self, refs: Iterable[dict[str, Any]]) -> list["Match"]:
        """The finished comparisons between runs that `refs` name, each once."""
        return [self._match(step) for step in self._matches(refs)]

    def judges(self, refs: Iterable[dict[str, Any]]) -> dict[str, int]:
        """Who compared runs that `refs` name side by side -> how many pairs of them."""
        return dict(Counter(str(step.manifest["params"]["judge"]) for step in self._matches(refs)))

    def _matches(self, refs: Iterable[dict[str, Any]]) -> list[_Finished]:
        keys = dict.fromkeys(key for ref in refs for key in ref["steps"])
        return [step for key in keys if (step := self._step(key)) is not None and step.pipeline.gives == "matches"]

    def _match(self, step: _Finished) -> "Match":
        given, params = step.manifest["inputs"], step.manifest["params"]
        asked = {name: value for name, value in params.items() if name != "max_missing"}
        tables = read_columns(step.folder / "out" / "scores.parquet", {WIN, *LENGTHS}, self._ids)
        split = next(iter(tables), EVAL)
        columns = tables.get(split, {})
        return Match(
            str(params["judge"]),
            canonical_json([step.manifest.get("version"), asked]),
            given["first"]["step"],
            given["second"]["step"],
            split,
            columns.get(WIN),
            {name: columns[name] for name in LENGTHS if name in columns},
            int(step.manifest["summary"]["rows"]),
            step.folder,
            _judging(step),
        )

    def _training(self, step: _Finished, split: str) -> dict[str, Metric]:
        split = split if split in step.means else EVAL
        meaning = f"{step.pipeline.name} {split}"
        return {
            name: Metric(self._column(step, split, column), split, True, meaning, name, False, mean, source)
            for name, column, mean, source in self._shown(step, split)
        }

    def _evaluation(self, step: _Finished, split: str, label: str | None) -> dict[str, Metric]:
        """With a label, by names that carry it; gold, which is the same in all steps of a run, keeps its own."""
        split = split if split in step.means or step.pipeline.gives == "scores" else EVAL
        gold = canonical_json([split, step.manifest["params"].get("gold")])
        alone = _alone(step)
        found = {}
        for name, column, mean, source in self._shown(step, split):
            meaning = gold if name.startswith(f"{GOLD}/") else _meaning(step, split)
            rows = self._column(step, split, column)
            found[metric_name(name, label)] = Metric(rows, split, False, meaning, name, alone, mean, source)
        return found

    @staticmethod
    def _figures(step: _Finished, split: str, label: str | None) -> dict[str, Figure]:
        """`figures` of the step's summary, by name: {mean, low, high, n}."""
        alone = _alone(step)
        split = EVAL if step.pipeline.gives == "benchmark" else split
        figures = (step.manifest["summary"] or {}).get("figures", {})
        return {
            metric_name(name, label): Figure(**found, split=split, kind=name, alone=alone)
            for name, found in figures.items()
        }

    @staticmethod
    def _shown(step: _Finished, split: str) -> Iterable[tuple[str, str, float, str]]:
        """The metrics that a step has on a split: name, column, mean, and which rows these are."""
        means = step.means.get(split, {})
        for name, column in _metrics(step.pipeline, step.manifest).items():
            if column in means:
                yield name, column, means[column], f"{step.source}/{split}/{column}"

    def _step(self, key: str) -> _Finished | None:
        if key not in self._steps:
            folder = self._folders.get(short(key))
            self._steps[key] = None if folder is None else self._read_step(key, folder)
        return self._steps[key]

    def _read_step(self, key: str, folder: Path) -> _Finished | None:
        """A finished step by what the index keeps of it; None where it is damaged: the next execute makes it again."""
        try:
            looks = [look_of(f"{folder}/{name}") for name in (MANIFEST, "out/scores.parquet")]
            kept = self.index.remember("step", " ".join([folder.name, *looks]), lambda: self._summary(folder))
        except (OSError, DamagedFile):
            return None
        known = pipelines().get(kept["pipeline"])
        if known is None or self.store.intact(folder, kept) is not None:
            return None
        source = f"{short(key)} {hashlib.sha256(repr(looks).encode()).hexdigest()[:12]}"
        return _Finished(key, folder, known, kept, kept["means"], source)

    def _summary(self, folder: Path) -> dict[str, Any]:
        """What the index keeps of a step. Raises DamagedFile where it is not whole."""
        manifest = self.store.manifest(folder)
        wrong = self.store.intact(folder, manifest)
        if wrong is not None:
            raise DamagedFile(wrong)
        known = pipelines().get(manifest["pipeline"])
        rows = {} if known is None else self._read_rows(folder, known, manifest)
        means = {
            split: {name: float(column.values.mean()) for name, column in columns.items()}
            for split, columns in rows.items()
        }
        names = ("pipeline", "name", "version", "params", "inputs", "seed", "seconds", "summary")
        about = {name: manifest.get(name) for name in names}
        sizes = {name: {"size": each["size"]} for name, each in manifest["outputs"].items()}
        return {**about, "outputs": sizes, "means": means}

    def _read_rows(self, folder: Path, pipeline: Pipeline, manifest: Mapping[str, Any]) -> dict[str, dict[str, Column]]:
        """The shown columns of `out/scores.parquet` by split; rows without a value are left out of that column."""
        path = folder / "out" / "scores.parquet"
        return read_columns(path, set(_metrics(pipeline, manifest).values()), self._ids) if path.exists() else {}

    def _column(self, step: _Finished, split: str, name: str) -> StoredColumn:
        """The same object for the same rows."""
        place = (step.key, split, name)
        if place not in self._columns:
            self._columns[place] = StoredColumn(lambda: self._table(step)[split][name])
        return self._columns[place]

    def _table(self, step: _Finished) -> dict[str, dict[str, Column]]:
        if step.key not in self._rows:
            self._rows[step.key] = self._read_rows(step.folder, step.pipeline, step.manifest)
            while len(self._rows) > MOST_HELD:
                self._rows.popitem(last=False)
        self._rows.move_to_end(step.key)
        return self._rows[step.key]


def _alone(step: _Finished) -> bool:
    """Whether it measured a model by itself: nobody else scored what it answered."""
    return step.pipeline.gives == "benchmark" and "judge" not in step.manifest["params"]


def _metrics(pipeline: Pipeline, manifest: Mapping[str, Any]) -> dict[str, str]:
    """The pipeline's metrics, and those whose names the step found."""
    return {**pipeline.metrics, **(manifest.get("summary") or {}).get("metrics", {})}


def _measured_by(step: _Finished) -> list[Any]:
    """What two steps must have in common if their metrics are to be compared."""
    manifest, names = step.manifest, step.pipeline.compared_by
    if names is None:
        return [_reward(step), {**manifest["params"], "gold": None}]
    found: dict[str, Any] = {**manifest["summary"], **manifest["params"]}
    found |= {role: input_identity(given) for role, given in manifest["inputs"].items()}
    return [step.pipeline.name, {name: found.get(name) for name in names}]


def _judging(step: _Finished) -> dict[str, Any]:
    """{pipeline, judge, pairs, missing, identical, consistent, prefers_first, prefers_second}: how far the verdicts
    of a judge hang on the order, and how many there are not; None for what a rating has not."""
    summary = step.manifest["summary"]
    position = summary.get("position") or {}
    return {
        "pipeline": step.pipeline.name,
        "judge": str(step.manifest["params"]["judge"]),
        "missing": summary.get("missing"),
        "identical": summary.get("identical"),
        **{name: position.get(name) for name in ("pairs", "consistent", "prefers_first", "prefers_second")},
    }


def _reward(step: _Finished) -> Any:
    """What stands behind the roles of a reward: the same value for the same reward model or function."""
    inputs = step.manifest["inputs"]
    return {role: inputs[role] for role in sorted(inputs) if role.startswith("reward")}


def _meaning(step: _Finished, split: str) -> str:
    """Equal for two steps whose rewards are of the same kind."""
    return canonical_json([split, *_measured_by(step)])
