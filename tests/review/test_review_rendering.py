"""What training sees of a row: the very tokens, of the process that the viewer asks."""

import json
import os
import signal
from pathlib import Path

import pytest

from cdpo.data.messages import assistant, user
from cdpo.errors import CdpoError, UsageError
from cdpo.files import write_json
from cdpo.review import rendering
from cdpo.review.rendering import MOST, Renderer, counts, pieces, rendered, request, trained_on
from cdpo.store import Store
from tests.results.made import finish, key, record

ROW = {
    "prompt_id": "x",
    "prompt": [user("list two fruits")],
    "chosen": [assistant("plum grape")],
    "rejected": [assistant("lemon lemon lemon")],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A dataset, and an SFT and a DPO model that a run trained on it."""
    from cdpo.models import build

    store = Store(tmp_path_factory.mktemp("store"))
    data = finish(store, "PREP", "small", key("prep"))
    steps = [data]
    for name, params in {"SFT": {"loss": "completion"}, "DPO": {"max_length": 12}, "RM": {}}.items():
        step = finish(store, name, "tiny", key(name))
        build({"kind": "tiny", "seed": 0}, store.find(step) / "out")
        write_json(store.find(step) / "step.json", {"params": {"template": None, "max_length": None, **params}})
        steps.append(step)
    record(store, "t", "run", "DPO", 0, {}, steps)
    record(store, "t", "other", "DPO", 0, {}, [key("other data"), *steps[1:]])
    return store


def folders(store: Store) -> dict[str, Path]:
    return {name.partition("/")[0]: each for name, each in trained_on(store, store.read_refs(), key("prep")).items()}


def test_the_models_that_learned_from_it(store):
    assert list(folders(store)) == ["DPO", "RM", "SFT"]
    assert trained_on(store, store.read_refs(), key("nobody's")) == {}
    policies = trained_on(store, store.read_refs(), key("prep"), ("policy",))
    assert [name.partition("/")[0] for name in policies] == ["DPO", "SFT"]


def test_it_is_what_training_reads(store):
    from cdpo.data.preflight import usable_rows
    from cdpo.models import load_tokenizer
    from cdpo.train.rows import language_rows

    asked = request(folders(store)["SFT"], ROW)
    found = rendered(asked, {})
    tokenizer = load_tokenizer(Path(asked["folder"]))
    (row,), _ = usable_rows([ROW], tokenizer, 512, 0.0)
    assert found["lengths"] == [len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    (trained,) = language_rows([row], "completion")
    counted = [label != -100 for label in trained["labels"]]
    assert counted == [False] * len(found["prompt"]) + [True] * len(found["responses"][0])
    shown = [piece.strip() for piece, _ in [*found["prompt"], *found["responses"][0]]]
    assert shown == tokenizer.convert_ids_to_tokens(trained["input_ids"])
    assert found["responses"][0][-1][1], "the end token is no special one"
    assert found["left_out"] is None


def test_a_row_that_is_left_out_says_why(store):
    long = rendered(request(folders(store)["DPO"], ROW), {})
    assert long["limit"] == 12
    assert long["left_out"] is None
    longer = {**ROW, "rejected": [assistant("lemon " * 20)]}
    assert (
        "tokens with its longer response, and the model takes 12"
        in rendered(request(folders(store)["DPO"], longer), {})["left_out"]
    )
    spelled = {**ROW, "chosen": [assistant("plum <|end|> plum")]}
    found = rendered(request(folders(store)["SFT"], spelled), {})
    assert "special token" in found["left_out"]
    assert found["responses"] == []
    assert found["prompt"]


def test_a_long_text_is_cut_and_counted(store):
    found = rendered(request(folders(store)["SFT"], {**ROW, "chosen": [assistant("plum " * 5000)]}), {})
    assert len(found["responses"][0]) == MOST
    assert found["lengths"][1] > 5000


def test_which_tokens_count(store):
    assert counts(folders(store)["SFT"])[0] is False
    write_json(folders(store)["SFT"] / "step.json", {"params": {"loss": "all", "template": None, "max_length": None}})
    assert counts(folders(store)["SFT"])[0] is True
    assert "last token" in counts(folders(store)["RM"])[1]


class Letters:
    """A tokenizer of bytes, as those of real models: one letter may be several tokens."""

    all_special_ids = (0,)

    def decode(self, ids, **_):
        return bytes(ids).decode("utf-8", "replace")


def test_pieces_are_the_text_where_it_stands():
    ids = [0, *"aé€😀".encode()]
    found = pieces(Letters(), ids)
    assert "".join(piece for piece, _ in found) == "\0aé€😀"
    assert len(found) == len(ids)
    assert [special for _, special in found] == [True, *[False] * (len(ids) - 1)]
    assert "".join(piece for piece, _ in pieces(Letters(), ids[:-1])) == "\0aé€\ufffd"


def test_what_is_not_here_is_said(store, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="no tokenizer"):
        request(tmp_path, ROW)
    (tmp_path / "out" / rendering._TOKENIZER).write_text("{}")
    with pytest.raises(UsageError, match=r"step\.json"):
        request(tmp_path, ROW)


def test_the_process_answers_and_comes_again_when_it_was_killed(store, tmp_path):
    renderer = Renderer()
    asked = request(folders(store)["DPO"], ROW)
    try:
        assert renderer.ask(asked) == json.loads(json.dumps(rendered(asked, {})))
        with pytest.raises(CdpoError, match="tokenizer"):
            renderer.ask({**asked, "folder": str(tmp_path)})
        assert renderer._process is not None
        os.kill(renderer._process.pid, signal.SIGKILL)
        renderer._process.wait()
        assert renderer.ask(asked) == json.loads(json.dumps(rendered(asked, {})))
    finally:
        renderer.close()
