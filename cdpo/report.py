"""`cdpo results` and `cdpo compare` as text: a table for people, CSV for programs. The numbers are the JSON's."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CSV_COLUMNS = (
    "kind", "name", "tag", "seeds", "method", "model", "dataset", "params", "state", "marks",
    "metric", "split", "mean", "low", "high", "n", "conditional_on", "between_seeds_low", "between_seeds_high",
    "versus", "versus_difference", "versus_low", "versus_high", "versus_p",
)  # fmt: skip


def render_table(collected: Mapping[str, Any], width: int = 160) -> str:
    """What `cdpo.results.collect` gives, as text at most `width` columns wide (cells wrap; nothing is cut off)."""
    from rich.table import Table

    runs, groups = collected["runs"], collected["groups"]
    if not runs:
        return "No runs yet: `cdpo execute` makes some.\n"
    marks = list(dict.fromkeys(mark for entry in [*runs, *groups] for mark in entry["marks"]))
    parts: list[Any] = []
    for title, entries in (("Runs", runs), ("Configurations, over seeds", groups)):
        metrics = list(dict.fromkeys(name for entry in entries for name in entry["metrics"]))
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="")
        table.add_column("name", overflow="fold")
        table.add_column("n", justify="right")
        for name in metrics:
            table.add_column(name.replace("/", "/ "), justify="right")
        for entry in entries:
            table.add_row(*_row(entry, metrics, marks))
        parts += [table, ""]
    parts += _versus_table(groups)
    parts += _reward_model_lines(collected.get("reward_models", []))
    parts += [
        "value ± half the width of its 95 % interval over the n prompts, conditional on the seeds run, the trained",
        "models, their sampled responses and the reward model. --json has both ends, and the intervals over seeds.",
    ]
    parts += [f"[{number}] {mark}" for number, mark in enumerate(marks, start=1)]
    return _text(parts, width)


def _row(entry: Mapping[str, Any], metrics: Sequence[str], marks: Sequence[str]) -> list[str]:
    name = entry["name"]
    if entry["state"] != "done":
        name += f" ({entry['state']})"
    name += "".join(f" [{marks.index(mark) + 1}]" for mark in entry["marks"])
    values = entry["metrics"]
    sizes = {value["n"] for value in values.values()}
    # one n for the row where it holds for all of it, else one in every cell
    common = len(sizes) == 1
    cells = [_cell(values[metric], not common) if metric in values else "" for metric in metrics]
    return [name, str(sizes.pop()) if common else "", *cells]


def _cell(value: Mapping[str, Any], with_n: bool = False) -> str:
    text = number(value["mean"])
    if value["low"] is not None:
        text += f" ±{number((value['high'] - value['low']) / 2)}"
    return text + (f" (n={value['n']})" if with_n else "")


def number(value: float) -> str:
    """Three places after the point; four significant digits where that would be too many or too few."""
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.4g}"


def _versus_table(groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    from rich.table import Table

    compared = [group for group in groups if group["versus"]]
    if not compared:
        return []
    title = "Differences to the policies they were trained from, paired by prompt"
    return [
        _difference_table(
            title, ((f"{g['name']} - {g['versus']['name']}", g["versus"]["metrics"]) for g in compared), Table
        ),
        "",
    ]


def _difference_table(title: str, rows: Iterable[tuple[str, Mapping[str, Any]]], kind: Any) -> Any:
    table = kind(title=title, title_justify="left", box=None, pad_edge=False, header_style="")
    table.add_column("difference", overflow="fold")
    table.add_column("metric")
    for name in ("difference", "95 % interval", "p", "n", "wins/ties/losses"):
        table.add_column(name, justify="right")
    for name, metrics in rows:
        for metric, value in metrics.items():
            interval = "" if value["low"] is None else f"{number(value['low'])} to {number(value['high'])}"
            p = "" if value["p"] is None else ("<0.0001" if value["p"] < 0.0001 else f"{value['p']:.4f}")
            record = f"{value['wins']}/{value['ties']}/{value['losses']}"
            table.add_row(name, metric, number(value["difference"]), interval, p, str(value["n"]), record)
            name = ""
    return table


def _reward_model_lines(models: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"reward model {model['name']} (seed {model['seed']}): "
        + ", ".join(f"{name} {_cell(value, True)}" for name, value in model["metrics"].items())
        for model in models
        if model["metrics"]
    ]
    return [*lines, ""] if lines else []


def render_comparison(compared: Mapping[str, Any], width: int = 160) -> str:
    """What `cdpo.results.compare` gives, as text."""
    from rich.table import Table

    name = f"{compared['a']} - {compared['b']}"
    metrics = compared["metrics"]
    parts: list[Any] = [_difference_table("Paired by prompt", [(name, metrics)], Table), ""]
    parts += [f"not compared: {metric}: {why}" for metric, why in compared["not_compared"].items()]
    parts += sorted({f"conditional on {value['conditional_on']}" for value in metrics.values()})
    unpaired = max(value["unpaired"] for value in metrics.values())
    if unpaired:
        parts.append(f"up to {unpaired} prompts have a value on one side only and are left out")
    return _text(parts, width)


def to_csv(collected: Mapping[str, Any]) -> str:
    """The numbers of `collect` in long form: one line per run and metric, then per configuration and metric.

    Runs and configurations without any metric yet have one line with an empty metric.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for kind, entries in (("run", collected["runs"]), ("configuration", collected["groups"])):
        for entry in entries:
            about = {
                "kind": kind,
                **{name: entry[name] for name in ("name", "tag", "method", "model", "dataset", "state")},
                "seeds": " ".join(map(str, entry.get("seeds", [entry.get("seed")]))),
                "params": json.dumps(entry["params"], sort_keys=True),
                "marks": "; ".join(entry["marks"]),
            }
            versus = entry.get("versus") or {"name": None, "metrics": {}}
            for metric, value in entry["metrics"].items() or [("", {})]:
                row = {**about, "metric": metric}
                row |= {name: value.get(name) for name in ("split", "mean", "low", "high", "n", "conditional_on")}
                over_seeds = value.get("between_seeds") or {}
                row |= {f"between_seeds_{end}": over_seeds.get(end) for end in ("low", "high")}
                if metric in versus["metrics"]:
                    difference = versus["metrics"][metric]
                    row["versus"] = versus["name"]
                    row |= {f"versus_{name}": difference[name] for name in ("difference", "low", "high", "p")}
                writer.writerow(row)
    return stream.getvalue()


def _text(parts: Iterable[Any], width: int) -> str:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, markup=False, color_system=None, emoji=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
