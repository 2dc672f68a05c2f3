"""The AH rule on the real test file of hh-rlhf (people's own words; some are offensive by design)."""

import gzip
import json
import re
from pathlib import Path

import pytest

from cdpo.data.preflight import usable_rows
from cdpo.data.prepared import SPLITS, read_split
from cdpo.data.tiny import build_tiny_for_text
from cdpo.errors import StepError
from cdpo.files import read_json
from cdpo.pipelines import prep
from cdpo.step import Device, Step

FILE = Path(__file__).parents[3] / "shared" / "data" / "hh_rlhf" / "harmless_base_test.jsonl.gz"

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"{FILE} is not there")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("hh")
    step = Step("PREP", "k" * 64, "hh", {"rule": "AH"}, {"source": [str(FILE)]}, None, Device(), work)
    step.out.mkdir()
    prep.run(step)
    return step.out


def test_nine_rows_are_no_preference(out: Path) -> None:
    report = read_json(out / "report.json")
    assert report["read"] == {"source": 2312}
    assert report["dropped"] == {"chosen and rejected differ before the last response": 5, "empty response": 4}
    assert sum(report["kept"].values()) == 2303
    places = report["dropped_at"]["source"]
    assert [int(place.split(":")[1]) for place in places["empty response"]] == [87, 517, 926, 1104]
    assert [int(place.split(":")[1]) for place in places["chosen and rejected differ before the last response"]] == [
        1255,
        1689,
        1951,
        1953,
        2037,
    ]


def test_speakers_alternate_and_no_word_is_lost(out: Path) -> None:
    with gzip.open(FILE, "rt", encoding="utf-8") as stream:
        dialogues = {only_said(json.loads(line)["chosen"]) for line in stream}
    for split in SPLITS:
        for row in read_split(out, split):
            roles = [each["role"] for each in row["prompt"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
            said = "".join(each["content"] for each in [*row["prompt"], *row["chosen"]])
            assert "".join(said.split()) in dialogues


def only_said(dialogue: str) -> str:
    """The dialogue without its speakers and its white space."""
    return "".join(re.sub(r"\n\n(Human|Assistant):", "", dialogue).split())


def test_a_tiny_model_of_its_words_takes_nearly_every_row(out: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows = read_split(out, "train")
    texts = [each["content"] for row in rows for each in [*row["prompt"], *row["chosen"], *row["rejected"]]]
    build_tiny_for_text(texts, tmp_path / "model", vocab_size=2048)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    kept, report = usable_rows(rows, tokenizer, 1024, 0.05)
    assert len(kept) > 0.99 * len(rows)
    assert report.dropped.keys() <= {"longer than max_length"}
    with pytest.raises(StepError, match="raise max_dropped"):
        usable_rows(rows, tokenizer, 256, 0.05)
