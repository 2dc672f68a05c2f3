"""Tables for a paper, of what `cdpo results` and `cdpo compare` give: configurations in rows, metrics in columns.

The numbers are the JSON's, rounded as in the table for people. What they are conditional on stands below each table, so
that none needs another to be understood. `cdpo.report.typeset` writes them as Markdown or LaTeX.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cdpo.pipeline import pipelines
from cdpo.plan.names import count, show_value
from cdpo.report.differences import REFERENCE
from cdpo.report.tables import (
    SELECTION_HEAD,
    comparison_tables,
    length_lines,
    number,
    p_shown,
    record,
    selection_tables,
)
from cdpo.report.typeset import Mark, Number, Row, Symbol, Table, Text
from cdpo.stats.matrix import ALPHA, holm

#: columns of numbers with intervals that fit on a page beside the configurations
_MOST_METRICS = 4
_OVER_SEEDS = "over seeds: Student's t interval of one value per seed, conditional on these prompts."
_DIFFERENCE_HEADS = [">difference", ">95 % interval"]
_ENDS = "95 % interval: over prompts; below it, where there are several seeds, over seeds."


def results_tables(collected: Mapping[str, Any]) -> list[Table]:
    """Of what `cdpo.report.collect.collect` gives: for each tag its configurations, then what they gained over the
    policies that they were trained from; what was selected and the reward models. No table where there are no runs."""
    found = [
        Table([title], list(SELECTION_HEAD), [Row([[cell] for cell in row]) for row in rows])
        for title, rows in selection_tables(collected.get("selections", []))
    ]
    for tag in dict.fromkeys(group["tag"] for group in collected["groups"]):
        found += _tag_tables([group for group in collected["groups"] if group["tag"] == tag])
    for title, pairs in comparison_tables(collected.get("comparisons", [])):
        rows = [row for label, value in pairs for row in _difference_rows([label], value)]
        notes = _difference_notes([value for _, value in pairs])
        found.append(Table([title], ["a minus b", *_DIFFERENCE_HEADS, ">p", ">n", ">wins/ties/losses"], rows, notes))
    return found + _reward_model_tables(collected.get("reward_models", []))


# -- configurations ----------------------------------------------------------------------------------------------------


def _tag_tables(groups: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Of one tag."""
    common = _common(groups)
    labels = dict(zip((group["name"] for group in groups), _labels(groups), strict=True))
    corrected = _corrected(groups)
    metrics = list(dict.fromkeys(name for group in groups for name in group["metrics"]))
    trained = [name for name in metrics if any(name in _of_training(group) for group in groups)]
    evaluated = [name for name in metrics if name not in trained]
    blocks = [(each, False) for each in _blocks(evaluated)] + [(each, True) for each in _blocks(trained)]
    found = []
    for at, (block, training) in enumerate(blocks or [([], False)]):
        # one that has nothing yet is shown once
        shown = [each for each in groups if at == 0 or not each["metrics"].keys().isdisjoint(block)]
        found.append(_configurations(common, shown, labels, block, corrected, training))
    for group in groups:
        if group["versus"]:
            found.append(_versus_table(common, group, labels, corrected))
    return found


def _of_training(group: Mapping[str, Any]) -> Iterable[str]:
    method = pipelines().get(group["method"])
    return method.metrics if method is not None else ()


def _blocks(metrics: list[str]) -> list[list[str]]:
    """Of at most _MOST_METRICS, about as many in each."""
    blocks = max(1, -(-len(metrics) // _MOST_METRICS))
    size = max(1, -(-len(metrics) // blocks))
    return [metrics[at : at + size] for at in range(0, len(metrics), size)]


def _corrected(groups: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float | None]:
    """(configuration, metric) -> p of its difference from what it was trained from, corrected for all of them."""
    tests = {
        (group["name"], metric): value["p"]
        for group in groups
        if group["versus"]
        for metric, value in group["versus"]["metrics"].items()
    }
    return dict(zip(tests, holm(list(tests.values())), strict=True))


def _configurations(
    common: Text,
    groups: Sequence[Mapping[str, Any]],
    labels: Mapping[str, Text],
    metrics: Sequence[str],
    corrected: Mapping[tuple[str, str], float | None],
    training: bool,
) -> Table:
    """`metrics` of each configuration: its values, and below them their intervals."""
    marks = _Marks()
    rows, starred = [], False
    for group in groups:
        values = [group["metrics"].get(name) for name in metrics]
        own: list[str] = list(group["marks"])
        if group["state"] != "done":
            own.insert(0, f"{group['state']}: not all of its runs have all of their steps")
        own += _fewer_seeds(group, metrics)
        sizes = {value["n"] for value in values if value}
        cells: list[Text] = []
        for name, value in zip(metrics, values, strict=True):
            p = corrected.get((group["name"], name))
            star = value is not None and p is not None and p < ALPHA
            starred |= star
            cells.append([*_value(value, with_n=len(sizes) > 1), *([Mark("*")] if star else [])])
        size = [Number(sizes.pop())] if len(sizes) == 1 else [""]
        label = [*labels[group["name"]], *marks.of(own)]
        rows.append(Row([label, [Number(len(group["seeds"]))], size, *cells], origin=f"{group['tag']}/{group['name']}"))
        rows += _interval_rows(values, 2)
    mean = "the mean over n prompts of each prompt's average over the seeds, with its 95 % intervals."
    title = [*common, f"{_splits(groups, metrics)}: {mean}"]
    notes = _interval_notes(groups, metrics, labels)
    own_metrics = [name for name in metrics if name in REFERENCE]
    if own_metrics:
        notes.append([f"{', '.join(own_metrics)}: of the dataset's own responses, whoever is evaluated."])
    if training:
        notes.append(["Measured by the training of each method: a loss means another thing for another method."])
    if starred:
        notes.append([Mark("*"), f" {_STAR.format(level=100 * ALPHA, tests=count(len(corrected), 'such comparison'))}"])
    return Table(title, ["configuration", ">seeds", ">n", *(f">{name}" for name in metrics)], rows, notes + marks.notes)


_STAR = (
    "differs from the configuration that its training started from: paired t test over prompts, conditional on the "
    "seeds, corrected by Holm for {tests} of the tag; the level is {level:g} %."
)


def _labels(groups: Sequence[Mapping[str, Any]]) -> list[Text]:
    """The method of each and its parameters; tag, model and dataset where there are several; the name where that is not
    enough to tell them apart."""
    several = [name for name in ("tag", "model", "dataset") if len({str(group[name]) for group in groups}) > 1]
    same = _shared(groups)
    labels: list[Text] = []
    for group in groups:
        label: list[str] = [" ".join([group["method"], *(str(group[name]) for name in several)])]
        for name, value in group["params"].items():
            if name not in ("seed", *same):
                label += _assigned(name.removeprefix(f"{group['method']}."), value)
        labels.append(label)
    counts = Counter("".join(label) for label in labels)
    return [
        label if counts["".join(label)] == 1 else [group["name"]] for label, group in zip(labels, groups, strict=True)
    ]


def _value(value: Mapping[str, Any] | None, with_n: bool) -> list[str]:
    if value is None:
        return [""]
    return [Number(number(value["mean"])), *([" (n = ", Number(value["n"]), ")"] if with_n else [])]


def _interval(value: Mapping[str, Any] | None) -> Text:
    """Empty where there is none: of one prompt, of one seed."""
    if value is None or value["low"] is None:
        return [""]
    return [Number(f"[{number(value['low'])}, {number(value['high'])}]")]


def _interval_rows(values: Sequence[Mapping[str, Any] | None], blank: int) -> list[Row]:
    """Over prompts, and over seeds where there are several."""
    rows = []
    for name, ends in (
        ("over prompts", [_interval(value) for value in values]),
        ("over seeds", [_interval(value and value.get("between_seeds")) for value in values]),
    ):
        if any(part for cell in ends for part in cell):
            rows.append(Row([[name], *([[""]] * blank), *ends], continued=True))
    return rows


def _common(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """`tag first, model tiny, beta = 0.1`: what is the same for all, and not in their labels."""
    same = {name: {str(group[name]) for group in groups} for name in ("tag", "model", "dataset")}
    told = ", ".join(f"{name} {values.pop()}" for name, values in same.items() if len(values) == 1)
    return [told, *(piece for name, value in _shared(groups).items() for piece in _assigned(name, value))]


def _shared(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Parameters in which several configurations do not differ."""
    first, *others = [group["params"] for group in groups]
    return {
        name: value
        for name, value in first.items()
        if name != "seed" and others and all(name in each and each[name] == value for each in others)
    }


def _assigned(name: str, value: Any) -> list[str]:
    """`, beta = 0.1`"""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return [", ", Symbol(name), " = ", Number(show_value(value)) if is_number else show_value(value)]


def _splits(groups: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    splits = {value["split"]: name for group in groups for name, value in group["metrics"].items() if name in metrics}
    return f", split {' and '.join(splits)}" if splits else ""


def _fewer_seeds(group: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """Metrics that not all seeds have yet."""
    fewer: dict[str, list[str]] = {}
    for name in metrics:
        value = group["metrics"].get(name)
        if value is not None and value["seeds"] != group["seeds"]:
            fewer.setdefault(" ".join(map(str, value["seeds"])), []).append(name)
    every = " ".join(map(str, group["seeds"]))
    return [f"{', '.join(names)}: of seeds {every} only {seeds}" for seeds, names in fewer.items()]


class _Marks:
    """Letters for what is said of some rows only, in the order in which they come."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def of(self, texts: Sequence[str]) -> list[str]:
        self.texts += [text for text in dict.fromkeys(texts) if text not in self.texts]
        letters = ",".join(self._letter(self.texts.index(text)) for text in dict.fromkeys(texts))
        return [Mark(letters)] if letters else []

    @staticmethod
    def _letter(at: int) -> str:
        return (_Marks._letter(at // 26 - 1) if at >= 26 else "") + chr(ord("a") + at % 26)

    @property
    def notes(self) -> list[Text]:
        return [[Mark(self._letter(at)), f" {text}"] for at, text in enumerate(self.texts)]


def _interval_notes(
    groups: Sequence[Mapping[str, Any]], metrics: Sequence[str], labels: Mapping[str, Text]
) -> list[Text]:
    """What the intervals are, and what each holds fixed: all that differs by metric or configuration by itself."""
    held: dict[str, list[str]] = {}
    seeds = False
    for group in groups:
        for name in metrics:
            value = group["metrics"].get(name)
            if value is not None:
                having = held.setdefault(value["conditional_on"], [])
                having += [group["name"]] if group["name"] not in having else []
                seeds |= value.get("between_seeds") is not None
    notes: list[Text] = []
    if held:
        notes.append(["over prompts: Student's t interval; of rates Wilson's."])
    for fixed, names in held.items():
        whose = [] if len(held) == 1 else [" (", *_joined([labels[name] for name in names]), ")"]
        notes.append(["Conditional on ", fixed, *whose, "."])
    return notes + ([[_OVER_SEEDS]] if seeds else [])


def _joined(texts: Sequence[Text]) -> list[str]:
    return [piece for at, text in enumerate(texts) for piece in (["; "] if at else []) + list(text)]


# -- differences -------------------------------------------------------------------------------------------------------


def _versus_table(
    common: Text,
    group: Mapping[str, Any],
    labels: Mapping[str, Text],
    corrected: Mapping[tuple[str, str], float | None],
) -> Table:
    versus = group["versus"]
    base = labels.get(versus["name"], [versus["name"]])
    title = [*common, ": ", *labels[group["name"]], " minus ", *base, ", from which it was trained; paired by prompt."]
    table = _difference_table(title, versus, lambda metric: corrected[group["name"], metric])
    table.notes.append([f"p (Holm): corrected for {count(len(corrected), 'such comparison')} of the tag."])
    return table


def _difference_table(
    title: Text, compared: Mapping[str, Any], corrected: Callable[[str], float | None] | None = None
) -> Table:
    """Every metric of {metrics, not_compared} in a row."""
    heads = ["metric", *_DIFFERENCE_HEADS, ">p", *([">p (Holm)"] if corrected else []), ">n", ">wins/ties/losses"]
    rows = []
    for metric, value in compared["metrics"].items():
        rows += _difference_rows([metric], value, [[Number(p_shown(corrected(metric)))]] if corrected else [])
    notes = _difference_notes(list(compared["metrics"].values()))
    notes += [["not compared: ", metric, ": ", why, "."] for metric, why in compared["not_compared"].items()]
    return Table(title, heads, rows, notes)


def _difference_rows(label: Text, value: Mapping[str, Any], corrected: Sequence[Text] = ()) -> list[Row]:
    """Under the heads of a difference: itself, its interval, p, `corrected`, n, wins/ties/losses."""
    sizes = [[Number(each)] for each in (value["n"], record(value))]
    tested = [[Number(p_shown(value["p"]))], *corrected, *sizes]
    first = Row([label, [Number(number(value["difference"]))], _interval(value), *tested])
    return [first, *_over_seeds(value, first)]


def _over_seeds(value: Mapping[str, Any], first: Row) -> list[Row]:
    """The other interval, below that over prompts."""
    if not value["between_seeds"]:
        return []
    blank: list[Text] = [[""]] * (len(first.cells) - 3)
    return [Row([["over seeds"], [""], _interval(value["between_seeds"]), *blank], continued=True)]


def _difference_notes(values: Sequence[Mapping[str, Any]]) -> list[Text]:
    notes: list[Text] = [[_ENDS], ["p: paired t test over prompts, two-sided."]]
    notes += [[f"Conditional on {fixed}."] for fixed in dict.fromkeys(value["conditional_on"] for value in values)]
    if any(value["between_seeds"] for value in values):
        notes.append([_OVER_SEEDS])
    unpaired = max((value["unpaired"] for value in values), default=0)
    if unpaired:
        notes.append([f"Up to {unpaired} prompts have a value on one side only and are left out."])
    return notes


def comparison_table(compared: Mapping[str, Any]) -> list[Table]:
    """Of what `cdpo.report.collect.compare` gives: one table, a metric in each row."""
    table = _difference_table([f"{compared['a']} minus {compared['b']}, paired by prompt."], compared)
    if len(compared["metrics"]) > 1:
        table.notes.append([f"p is not adjusted for the number of metrics, {len(compared['metrics'])}."])
    return [table]


# -- all with all ------------------------------------------------------------------------------------------------------


def matrix_tables(compared: Mapping[str, Any]) -> list[Table]:
    """Of what `cdpo.report.matrix.compare_all` gives: the configurations by their means, then their pairs."""
    runs, pairs = compared["runs"], compared["pairs"]
    judge = compared.get("judge")
    better = f": {compared['metric']} on {compared['split']}; {compared['better']} is better: "
    what = [*_common(runs), better if judge is None else f": wins by the judge {judge} on {compared['split']}: "]
    scale = len({run["group"] for run in runs}) == 1
    labels = dict(zip((run["number"] for run in runs), _labels(runs), strict=True))
    ranking = []
    for run in sorted(runs, key=lambda run: run["mean"], reverse=compared["better"] == "higher"):
        elo = [[Number(f"{run['elo']:+.0f}")]] if scale else []
        seeds = [" ".join(map(str, run["seeds"]))]
        figures = [[Number(run["n"])], [Number(number(run["mean"]))], *elo]
        ranking.append(Row([[Number(run["number"])], labels[run["number"]], seeds, *figures], origin=run["label"]))
    elo_note = "Elo: of wins by prompt, a tie counting half, about a mean of zero."
    mean = "mean: over n prompts, of each one's average over the seeds"
    if judge is not None:
        mean = (
            "mean: the share won of n comparisons (prompts, with each of the others), ties counting half; difference: "
        )
        mean += "the share won minus the share lost"
    notes: list[Text] = [
        [f"{mean}; conditional on {compared['conditional_on']}."],
        [elo_note if scale else "No Elo: some always won or lost, and no number says by how much."],
    ]
    notes += [["left out: ", label, ": ", why, "."] for label, why in compared["left_out"].items()]
    heads = [">", "configuration", "seeds", ">n", ">mean", *([">Elo"] if scale else [])]
    return [Table([*what, "the configurations."], heads, ranking, notes), _pairs_table(what, compared, pairs)]


def _pairs_table(what: Text, compared: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for pair in pairs:
        told = [[Number("" if pair[name] is None else number(pair[name]))] for name in ("difference", "smallest")]
        tested = [[Number(p_shown(pair["p_holm"]))], told[1], [Number(pair["n"])], [Number(record(pair))]]
        name = f"{pair['b']} - {pair['a']}"
        first = Row([[Number(name)], told[0], _interval(pair), *tested, [pair["verdict"]]])
        rows += [first, *_over_seeds(pair, first)]
    notes: list[Text] = [
        [_ENDS],
        [f"over prompts: a bootstrap's interval, paired by prompt, conditional on {compared['conditional_on']}."],
        [_OVER_SEEDS],
        [
            f"verdict and p (Holm): paired t test over prompts, corrected by Holm for all {len(pairs)} pairs; "
            f"the level is {100 * compared['level']:g} %."
        ],
        [f"smallest: the difference that one test by itself would have found in {100 * compared['power']:g} %."],
        *([f"{line}."] for line in length_lines(pairs)),
    ]
    missing = max(pair["missing"] for pair in pairs)
    if missing:
        notes.append([f"Up to {missing} prompts have no score on one side of a pair, and are left out of it."])
    heads = ["pair", *_DIFFERENCE_HEADS, ">p (Holm)", ">smallest", ">n", ">wins/ties/losses", "verdict"]
    return Table([*what, "every pair of the configurations."], heads, rows, notes)


# -- reward models -----------------------------------------------------------------------------------------------------


def _reward_model_tables(models: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The reward models that were trained, by their own metrics."""
    models = [model for model in models if model["metrics"]]
    metrics = list(dict.fromkeys(name for model in models for name in model["metrics"]))
    found = []
    for block in _blocks(metrics):
        rows, held = [], dict[str, None]()
        for model in models:
            values = [model["metrics"].get(name) for name in block]
            cells = [_value(value, with_n=True) for value in values]
            rows.append(Row([[model["name"]], [Number(model["seed"])], *cells], origin=model["key"]))
            rows += _interval_rows(values, 1)
            held |= dict.fromkeys(value["conditional_on"] for value in values if value)
        notes: list[Text] = [["over prompts: Student's t interval; of rates Wilson's."]]
        notes += [[f"Conditional on {fixed}."] for fixed in held]
        heads = ["reward model", ">seed", *(f">{name}" for name in block)]
        found.append(Table(["Reward models, on the pairs that are held out."], heads, rows, notes))
    return found
