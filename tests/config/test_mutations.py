"""Thousands of damaged tasks files: each gives a plan, or problems at places inside the file; never another exception.

Two kinds: any damage at all (of the structure, or of the text), and damage that is known to break a rule, which must
never be accepted.
"""

import copy
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdpo.config.experiment import experiments_of
from cdpo.config.problems import ConfigError, Problem
from cdpo.config.tables import read_tables, shipped_configs
from cdpo.config.yaml_reader import parse_yaml
from cdpo.plan.build import PlanBuilder
from cdpo.plan.graph import Plan
from cdpo.plan.references import References
from cdpo.plan.states import states, summary

FOLDER = Path(tempfile.mkdtemp(prefix="cdpo-mutations-"))
TABLES = read_tables(FOLDER)
#: what PyYAML counts as the end of a line
LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
DAMAGE = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

PLAYGROUND = yaml.safe_load((shipped_configs() / "tasks.yaml").read_text(encoding="utf-8"))
SAIL = yaml.safe_load((shipped_configs() / "examples/sail.yaml").read_text(encoding="utf-8"))
INCLUDED = {"pipeline": "DPO", "beta": 5, "model": "m", "dataset": "d"}
WIDE: dict[str, Any] = {
    "models": {"m": {"build": {"kind": "tiny", "seed": 1}}, "n": "some/model", "o": {"id": "a/b", "template": "plain"}},
    "datasets": {"d": {"rule": "playground", "gold": "playground", "limit": 8}, "e": {"id": "a/b", "rule": "U"}},
    "rewards": {"r": {"id": "some/reward", "reverse": True}},
    "defaults": {"pipelines": ["SFT", "DPO", "GEN", "EVALREWARD"], "SFT": {"learning_rate": 0.001, "seed": 0}},
    "experiments": [
        {
            "tag": "one",
            "model": ["m", "o"],
            "dataset": ["d", "e"],
            "seed": [0, 1],
            "tasks": [
                {"pipeline": "BASE"},
                {"pipeline": "SFT"},
                {"pipeline": "DPO", "beta": [0.1, 1], "loss_type": ["sigmoid", ["sigmoid", "sft"]]},
                {"pipeline": "DPO", "beta": 0.1, "lora": [{"r": 8, "target_modules": ["q_proj"]}, True]},
            ],
            "GEN": {"temperature": [0.7, 1.0], "limit": 100},
            "EVALREWARD": {"reward": {"step": "RM", "model": "m", "seed": 0}, "dtype": "fp32"},
            "RM": {"max_steps": 10},
            "PREP": {"max_dropped": 0.5},
            "exclude": [{"pipeline": "DPO", "beta": 1}, {"GEN": {"temperature": 0.7}, "seed": 1}],
            "include": [{"pipeline": "SFT", "batch_size": 8}, INCLUDED],
        },
        {"tag": "two", "model": "n", "dataset": "d", "EVALREWARD": {"reward": "r"}, "tasks": [{"pipeline": "SFT"}]},
    ],
}  # fmt: skip
SWEPT = {
    "tag": "swept",
    "pipelines": ["SFT", "DPO", "GEN", "EVALREWARD"],
    "model": "tiny",
    "dataset": "playground",
    "seed": [0, 1],
    "tasks": [
        {"pipeline": "MIX", "beta": 1, "r": 0.1, "rho": 1, "p": 0.1, "pi": 1, "g": [0.1, 0.2], "gamma": 1},
        {"pipeline": "SFT"},
    ],
    "GEN": {"split": ["tune", "eval"]},
    "SFT": {"learning_rate": [0.001, 0.01]},
    "MIX": {"reward": {"step": "RM"}, "max_new_tokens": 8},
    "select": {"metric": "gold/mean", "split": "tune", "over": ["g", "SFT.learning_rate"]},
}
LIST = [{**SAIL, "tag": "a"}, {**PLAYGROUND, "tag": "b"}]
VALID = (PLAYGROUND, SAIL, WIDE, SWEPT, LIST)


def plan_of(text: str) -> Plan:
    """The plan of a text, with everything that `cdpo plan` does to show it."""
    document = parse_yaml(text, "tasks.yaml")
    tables = copy.copy(TABLES)
    tables.models, tables.datasets, tables.rewards = dict(TABLES.models), dict(TABLES.datasets), dict(TABLES.rewards)
    builder = PlanBuilder(tables, References(tables, FOLDER))
    for experiment in experiments_of(document, tables):
        builder.add(experiment)
    plan = builder.plan(FOLDER / "tasks.yaml")
    Plan.from_json(plan.to_json())
    summary(plan, states(plan, {}))
    return plan


def accepted(text: str) -> bool:
    """Whether a text gives a plan; where not, its problems must stand at places that it has."""
    plan, problems = outcome(text)
    if plan is None:
        lines = LINE_BREAK.split(text)
        assert problems
        for problem in problems:
            assert problem.file == "tasks.yaml"
            assert 1 <= problem.line <= len(lines), problem
            assert 1 <= problem.col <= len(lines[problem.line - 1]) + 1, problem
            assert problem.message
            assert len(str(problem).splitlines()) == 1
        return False
    assert plan.runs
    assert len({(run.tag, run.name) for run in plan.runs}) == len(plan.runs)
    assert all(key in plan.steps for run in plan.runs for key in run.steps)
    return True


def outcome(text: str) -> tuple[Plan | None, list[Problem]]:
    try:
        return plan_of(text), []
    except ConfigError as error:
        return None, error.problems


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of `value` with `new` at `path`; nothing that a document's values share is shared by its text."""
    if not path:
        return new
    value = copy.deepcopy(value)
    at(value, path[:-1])[path[-1]] = new
    return value


class Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(value: Any) -> str:
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, width=1000)


WORDS = ["", "x", "no", "~", "1e-6", "tiny", "playground", "DPO", "./x.py:f", "sys:exit", "a/b", "./a", "/", "."]
WORDS += ["${env:HOME}", "a\nb", "a" * 300, "ü/ü", "\x85", "<<", "~root/x", "a\0b", "C:x", "yaml.nothing:f"]
STRANGE = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 1, 2, 0.5, 1.0, -0.5, 1e300, 10**30, math.nan, math.inf, -math.inf]),
    st.sampled_from(WORDS),
    st.sampled_from([[], {}, [[]], [{}], {"a": 1}, [1, 1.0], [0, 1], ["SFT"], {"step": "RM"}, {"step": []}, {"": ""}]),
    st.text(max_size=6),
    st.recursive(st.integers() | st.floats() | st.text(max_size=3) | st.none(), st.lists, max_leaves=6),
)  # fmt: skip


@st.composite
def damaged(draw: Callable[[Any], Any]) -> str:
    """A valid document with one to three damages of its structure."""
    value = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        old = at(value, path)
        kind = draw(st.sampled_from(["replace", "drop", "rename", "wrap", "unwrap", "move", "repeat"]))
        if kind == "replace" or not path:
            value = put(value, path, draw(STRANGE))
        elif kind == "drop":
            value = copy.deepcopy(value)
            del at(value, path[:-1])[path[-1]]
        elif kind == "rename":
            above = at(value, path[:-1])
            if isinstance(above, dict):
                word = draw(
                    st.sampled_from([f"{path[-1]}x", str(path[-1])[1:], "seed", "beta", "GEN", "reward", "tag"])
                )
                value = put(value, path[:-1], {word if key == path[-1] else key: item for key, item in above.items()})
        elif kind == "wrap":
            value = put(value, path, draw(st.sampled_from([[old], [[old]], {"a": old}, [old, old]])))
        elif kind == "unwrap":
            value = put(value, path, old[0] if isinstance(old, list) and old else old)
        elif kind == "move":
            value = put(value, path, copy.deepcopy(at(value, draw(st.sampled_from(list(places(value)))))))
        else:
            above = at(value, path[:-1])
            if isinstance(above, list):
                value = put(value, path[:-1], [*above, old])
    return dump(value)


@st.composite
def edited(draw: Callable[[Any], Any]) -> str:
    """The text of a valid document after one to four edits, of letters or of lines."""
    text = draw(st.sampled_from([*map(dump, VALID), *((shipped_configs() / name).read_text() for name in FILES)]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(text) - 1)))
        kind = draw(st.sampled_from(["insert", "delete", "replace", "line twice", "line away"]))
        piece = draw(st.sampled_from(PIECES) | st.text(max_size=3))
        if kind == "insert":
            text = text[:start] + piece + text[start:]
        elif kind == "delete":
            text = text[:start] + text[start + draw(st.integers(1, 8)) :]
        elif kind == "replace":
            text = text[:start] + piece + text[start + len(piece) :]
        else:
            lines = text.splitlines(keepends=True)
            if lines:
                line = draw(st.integers(0, len(lines) - 1))
                lines[line : line + 1] = [lines[line]] * (2 if kind == "line twice" else 0)
            text = "".join(lines)
    return text


FILES = ("tasks.yaml", "examples/sail.yaml")
PIECES = (
    *"[]{}:,-&*#!|>'\"%@`?\t\n 0.e",
    *(": ", "- ", "&a ", "*a", "<<: *a", "!!str ", "\\x", ".nan", ".inf", "true", "null", "1e999", "0x", "${env:HOME}"),
    *("\ufeff", "\u2028", "\x85", "\r", "---\n", "...\n", "seed", "beta: -1"),
)


@settings(DAMAGE, max_examples=500)
@given(damaged())
def test_damaged_structures(text: str) -> None:
    accepted(text)


@settings(DAMAGE, max_examples=500)
@given(edited())
def test_edited_texts(text: str) -> None:
    accepted(text)


def test_the_undamaged_ones_are_accepted() -> None:
    for value in VALID:
        assert accepted(dump(value))


# -- damage that breaks a rule ------------------------------------------------------------------------------------


NUMBERS: dict[str, Callable[[float], bool]] = {
    "beta": lambda x: x > 0,
    "learning_rate": lambda x: x > 0,
    "num_train_epochs": lambda x: x > 0,
    "weight_decay": lambda x: x >= 0,
    "adam_beta1": lambda x: 0 <= x < 1,
    "warmup_ratio": lambda x: 0 <= x < 1,
    "max_dropped": lambda x: 0 <= x <= 1,
    "r": lambda x: 0 <= x < 1,
    "rho": lambda x: x >= 0,
    "p": lambda x: 0 <= x < 1,
    "pi": lambda x: x >= 0,
}
COUNTS = ("batch_size", "max_steps", "max_length", "limit", "eval_steps")
REQUIRED = {
    "DPO": {"beta": 1},
    "DDP": {"beta": 1, "r": 0.1, "rho": 1},
    "DPP": {"beta": 1, "p": 0.1, "pi": 1},
    "SFT": {},
}


def tasks_with(method: str, name: str, value: Any) -> str:
    """A file in which one parameter of `method` has `value`, and all else is right."""
    task = {"pipeline": method, **REQUIRED[method], name: value}
    head = {"tag": "t", "pipelines": ["SFT", "DPO"], "model": ["tiny"], "dataset": ["playground"]}
    return dump({**head, "tasks": [task]})


ANY_NUMBER = st.one_of(
    st.floats(width=64), st.integers(-3, 3), st.integers(-(10**12), 10**12), st.sampled_from([0.0, -0.0, 1.0, 5e-324])
)


@settings(DAMAGE, max_examples=1500)
@given(st.sampled_from([(m, n) for m in REQUIRED for n in NUMBERS]), ANY_NUMBER, st.booleans())
def test_a_number_is_accepted_if_and_only_if_its_range_allows_it(
    which: tuple[str, str], value: float, axis: bool
) -> None:
    """The oracle: the ranges above, written down a second time, by hand, from the methods' papers."""
    method, name = which
    owned = name in REQUIRED[method] or name not in ("beta", "r", "rho", "p", "pi")
    good = owned and math.isfinite(value) and NUMBERS[name](value)
    assert accepted(tasks_with(method, name, [value] if axis else value)) == good


@settings(DAMAGE, max_examples=500)
@given(st.sampled_from(sorted(REQUIRED)), st.sampled_from(COUNTS), ANY_NUMBER)
def test_a_count_is_a_whole_number_from_one(method: str, name: str, value: float) -> None:
    assert accepted(tasks_with(method, name, value)) == (isinstance(value, int) and value >= 1)


NO_NUMBER = st.sampled_from(["", "x", "1", "0.1", "1 e", True, False, None, [], {}, [[0.1]], {"a": 1}, [0.1, "0.2"]])


@settings(DAMAGE, max_examples=300)
@given(st.sampled_from([(m, n) for m, names in REQUIRED.items() for n in [*names, "learning_rate"]]), NO_NUMBER)
def test_what_is_no_number_is_refused(which: tuple[str, str], value: Any) -> None:
    assert not accepted(tasks_with(*which, value))


KNOWN_PATHS = [
    ("tasks", 0), ("tasks", 1), ("tasks", 2), ("SFT",), ("RM",), ("GEN",), (),
]  # fmt: skip


@settings(DAMAGE, max_examples=400)
@given(st.sampled_from(KNOWN_PATHS), st.from_regex(r"[a-z]{2,3}_?zz[a-z]?", fullmatch=True))
def test_an_unknown_key_is_refused(path: tuple[Any, ...], word: str) -> None:
    text = dump(put(PLAYGROUND, (*path, word), 1))
    with pytest.raises(ConfigError) as caught:
        plan_of(text)
    (problem,) = caught.value.problems
    assert problem.path == (*path, word)
    # a word that nothing else in the file holds: the problem stands where the word stands
    line = text.split("\n")[problem.line - 1]
    assert line[problem.col - 1 :].startswith(f"{word}:")


@settings(DAMAGE, max_examples=300)
@given(st.sampled_from(["pipelines", "model", "dataset", "seed", "tasks"]), st.integers(0, 3))
def test_axes_are_neither_empty_nor_say_a_value_twice(key: str, index: int) -> None:
    values = PLAYGROUND[key]
    assert not accepted(dump(put(PLAYGROUND, (key,), [])))
    again = copy.deepcopy(values[index % len(values)])
    if key != "tasks":  # the same task twice is the same runs, which exist once
        assert not accepted(dump(put(PLAYGROUND, (key,), [*values, again])))


@settings(DAMAGE, max_examples=300)
@given(
    st.from_regex(r"[A-Z]{3,5}Z", fullmatch=True),
    st.sampled_from(["pipeline", "model", "dataset", "pipelines", "reward"]),
)
def test_an_unknown_name_is_refused(word: str, what: str) -> None:
    path: tuple[Any, ...] = {
        "pipeline": ("tasks", 2, "pipeline"),
        "pipelines": ("pipelines", 2),
        "reward": ("EVALREWARD",),
    }.get(what, (what, 0))
    assert not accepted(dump(put(PLAYGROUND, path, {"reward": word} if what == "reward" else word)))


@settings(DAMAGE, max_examples=200)
@given(st.sampled_from(["tag", "pipelines", "model", "dataset", "tasks"]), st.sampled_from([PLAYGROUND, SAIL]))
def test_what_is_required_is_required(key: str, whole: dict[str, Any]) -> None:
    assert not accepted(dump({name: value for name, value in whole.items() if name != key}))


@settings(DAMAGE, max_examples=400)
@given(st.sampled_from([path for path in places(PLAYGROUND) if path and isinstance(path[-1], str)]), st.data())
def test_a_key_that_stands_twice_is_refused(path: tuple[Any, ...], data: st.DataObject) -> None:
    """The text of the mapping is given a second key of the same name."""
    above = at(PLAYGROUND, path[:-1])
    mark = "zzzz"
    text = dump(put(PLAYGROUND, path[:-1], {**above, mark: data.draw(st.sampled_from([1, "x", [], {}]))}))
    assert not accepted(text.replace(f"{mark}:", f"{path[-1]}:"))
