"""Cards: what was published, of what it was made, how good it is, and how to make it again."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from cdpo.hub.lineage import Lineage, source_text

_TAGS = ["cdpo"]


def model_card(lineage: Lineage, base: Mapping[str, Any] | None, code: Sequence[str] = ()) -> str:
    """Of a model; `base` is the model on the Hub that it is an adapter for, `code` the Python files that it brings."""
    head: dict[str, Any] = {"tags": [*_TAGS, lineage.tag]}
    hub = [given for given in lineage.sources if "hub" in given]
    bases = [given["hub"] for given in hub if given["kind"] == "model"]
    if bases:
        head["base_model"] = bases[0]
    if datasets := [given["hub"] for given in hub if given["kind"] == "dataset"]:
        head["datasets"] = datasets
    head["library_name"] = "peft" if base is not None else "transformers"
    what = f"An adapter for `{base['hub']}`" if base is not None else "A model"
    return _front(head) + "\n".join(
        [
            f"# {lineage.run}",
            "",
            f"{what}, trained by cdpo {lineage.steps[-1]['versions']['cdpo']} under the tag `{lineage.tag}`.",
            "",
            *_own_code(base, code),
            *_body(lineage),
        ]
    )


def _own_code(base: Mapping[str, Any] | None, code: Sequence[str]) -> list[str]:
    """A warning to whoever loads the model; what a tokenizer alone brings is the model's too."""
    if base is not None and base.get("trusted"):
        code = [f"those of `{base['hub']}`", *code]
    if not code:
        return []
    files = ", ".join(each if " " in each else f"`{each}`" for each in code)
    return [
        f"**It needs code that comes with the model that it was trained from: {files}.** Read it before you load this "
        "with `trust_remote_code=True`, which runs it.",
        "",
    ]


def evaluation_card(lineage: Lineage) -> str:
    """Of the responses of a run and their scores."""
    lines = [f"# Responses of {lineage.run}, tag {lineage.tag}", ""]
    lines += ["One row per response: the prompt, the response, its tokens and log-probabilities, its scores.", ""]
    return "\n".join([*lines, *_body(lineage)])


def index_card(run: str) -> Callable[[Sequence[str]], str]:
    """Of a dataset whose configs are tags."""

    def card(paths: Sequence[str]) -> str:
        tables = [path.split("/") for path in paths if path.endswith(".parquet") and path.count("/") == 1]
        tags = sorted({tag for tag, _ in tables})
        configs = [
            {
                "config_name": tag,
                "data_files": [
                    {"split": name.removesuffix(".parquet"), "path": f"{tag}/{name}"}
                    for own, name in tables
                    if own == tag
                ],
            }
            for tag in tags
        ]
        listed = "\n".join(f"- [{tag}]({tag}/README.md)" for tag in tags)
        front = _front({"tags": _TAGS, "configs": configs})
        return f"{front}# Responses of {run}\n\nOne config for each tag:\n\n{listed}\n"

    return card


def _front(head: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)}---\n\n"


def _body(lineage: Lineage) -> list[str]:
    return [
        *_results(lineage),
        *_made_of(lineage),
        *_configuration(lineage),
        *_machine(lineage),
    ]


def _results(lineage: Lineage) -> list[str]:
    if not lineage.metrics:
        return []
    lines = ["## Results", "", "| metric | value | 95 % interval | prompts | split |", "|---|---|---|---|---|"]
    for name, value in lineage.metrics.items():
        lines.append(
            f"| {name} | {value['mean']:.4f} | {value['low']:.4f} to {value['high']:.4f} | {value['n']} | "
            f"{value['split']} |"
        )
    given = sorted({str(value["conditional_on"]) for value in lineage.metrics.values()})
    return [
        *lines,
        "",
        *(f"Conditional on {each}." for each in given),
        *(f"Note: {mark}." for mark in lineage.marks),
        "",
    ]


def _made_of(lineage: Lineage) -> list[str]:
    lines = ["## Made of", "", "Sources:", ""]
    lines += [f"- {given['role']}: {source_text(given)}" for given in lineage.sources]
    lines += ["", "Steps, each named by a hash of all that decides its result:", ""]
    lines += ["| step | key | seed | seconds |", "|---|---|---|---|"]
    for manifest in lineage.steps:
        seed = manifest.get("seed")
        lines.append(
            f"| {manifest['pipeline']} {manifest['name']} | `{manifest['key']}` | {'' if seed is None else seed} | "
            f"{manifest['seconds']:.0f} |"
        )
    return [*lines, ""]


def _configuration(lineage: Lineage) -> list[str]:
    values = {f"{each['pipeline']} {each['key'][:12]}": each["params"] for each in lineage.steps}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return ["## Configuration", "", "Every value, defaults included:", "", "```yaml", text.rstrip(), "```", ""]


def _machine(lineage: Lineage) -> list[str]:
    last = lineage.steps[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items() if version)
    cards = sorted({gpu["name"] for each in lineage.steps for gpu in each["device"].get("gpus", [])})
    where = ", ".join(cards) or f"{last['host']['cpu']} ({last['host']['cpus']} cores)"
    return [
        "## Machine",
        "",
        f"{versions}. {where}; {lineage.seconds:.0f} s in {len(lineage.steps)} steps.",
        "",
    ]
