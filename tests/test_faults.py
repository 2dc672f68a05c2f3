"""What is wrong in the released package, by number, and that each of it has a test here that would see it again.

A test says so by `@pytest.mark.fault(number)`; `pytest -m fault` runs them all.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FAULTS = {
    # the method
    1: "the score-function term is divided by log pi: its sign turns, and 0/0 is NaN",
    2: "it is added to a mean loss without scaling: its strength grows with batch size and accumulation",
    3: "generated pairs carry the responses of other prompts",
    4: "prompts to generate for are drawn from rows that are replaced already: a handful of distinct ones",
    5: "rows get online terms before their pair is replaced, or turn offline in silence",
    6: "labels of DDP are never drawn",
    7: "rows without a score get probability 0; a replaced row keeps the probability of the old pair",
    8: "sampling, training and evaluation disagree on BOS, truncation and the end token",
    9: "all ranks draw one mask; mixtures of 1 or more are accepted",
    10: "probabilities of score differences saturate; cost models are not reversed everywhere",
    11: "precomputed reference log-probabilities belong to other rows",
    # the data
    12: "gaussian noise gives NaN",
    13: "labels are always redrawn, without a seed, by each rank for itself",
    14: "label_switching turns bt_prob as well",
    15: "datasets without an entry of a reward cannot be trained on",
    16: "ties and identical pairs are kept as preferences",
    17: "a limit takes the first rows",
    # the evaluation
    18: "the reward of a response is that of the prompt alone",
    19: "a judge's 10 is read as 1",
    20: "replies that cannot be read are asked for again for ever, and paid for",
    21: "ties and missing scores count as losses",
    22: "a dataset without a template for the judge is judged by the word none",
    23: "methods with an underscore in their name cannot be evaluated",
    24: "one setting of generation that is off takes the others along",
    # running
    25: "the shipped quick start is refused",
    26: "nothing starts without files of accounts, or from another folder",
    27: "equal values are two runs, and different ones share a name and overwrite each other",
    28: "a failed upload deletes the trained model",
    29: "clear deletes what never had the tag; prep begins by deleting datasets",
    30: "the viewer ends on its first screen",
    31: "an unknown card is a TypeError",
}
#: what is tested as far as it can happen here, and will want more tests with the part that is to come
IN_PART = {
    26: (("account", "credential"), "there are no accounts yet; that none are needed is tested"),
}


def marked() -> Iterator[tuple[int, str]]:
    """The numbers at the tests of all test files, read without importing them."""
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                        yield ast.literal_eval(mark.args[0]), f"{file.relative_to(ROOT)}::{node.name}"


def test_every_fault_that_can_come_back_has_its_test() -> None:
    tested = {number for number, _ in marked()}
    missing = [f"{number}: {what}" for number, what in FAULTS.items() if number not in tested]
    assert not missing, "mark the test that would see it: " + "; ".join(missing)
    assert set(IN_PART) <= tested


def test_marks_name_faults_that_there_are() -> None:
    assert {number for number, _ in marked()} <= set(FAULTS)
    assert list(FAULTS) == list(range(1, 32))


@pytest.mark.parametrize("number", [*IN_PART])
def test_what_is_not_built_is_not_there(number: int) -> None:
    """Whoever builds it is told here of the fault that is to be tested with it."""
    words, why = IN_PART[number]
    names = [path.relative_to(ROOT) for room in ("cdpo", "pipelines") for path in (ROOT / room).rglob("*.py")]
    built = [str(name) for name in names if any(word in part for word in words for part in Path(name).parts)]
    assert not built, f"{built[0]} is there, so this holds no more: {why}. Test fault {number}: {FAULTS[number]}"
