"""One tokenisation: what is trained on is what sampling continues, and it ends in exactly one end token."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdpo.data.messages import assistant, user
from cdpo.data.playground import vocabulary
from cdpo.data.tokens import ControlTokenError, decode_response, encode, encode_prompt, encode_rows, end_token_id
from cdpo.errors import StepError

words = st.lists(st.sampled_from(vocabulary()), min_size=1, max_size=12).map(" ".join)
#: any text without half surrogates, which no tokenizer takes
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda text: "<|" not in text
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def whole_text(tokenizer: Any, prompt: list[dict[str, str]], response: str) -> str:
    return tokenizer.apply_chat_template([*prompt, assistant(response)], tokenize=False)


@quick
@given(question=words, answer=words)
def test_playground_text_survives_encoding(tiny_tokenizer: Any, question: str, answer: str) -> None:
    prompt = [user(question)]
    encoded = encode(tiny_tokenizer, prompt, answer)
    assert tiny_tokenizer.decode(encoded.prompt_ids + encoded.response_ids) == whole_text(
        tiny_tokenizer, prompt, answer
    )
    assert decode_response(tiny_tokenizer, encoded.response_ids) == answer
    assert tiny_tokenizer.unk_token_id not in encoded.prompt_ids + encoded.response_ids


@quick
@given(question=unicode_text, answer=unicode_text)
def test_any_text_survives_a_byte_level_tokenizer(bpe_tokenizer: Any, question: str, answer: str) -> None:
    prompt = [user(question)]
    encoded = encode(bpe_tokenizer, prompt, answer)
    text = bpe_tokenizer.decode(encoded.prompt_ids + encoded.response_ids)
    assert text == whole_text(bpe_tokenizer, prompt, answer)
    assert decode_response(bpe_tokenizer, encoded.response_ids) == answer.strip()
    assert encoded.prompt_ids == encode_prompt(bpe_tokenizer, prompt)
    assert encoded.response_ids.count(end_token_id(bpe_tokenizer)) == 1
    assert encoded.response_ids[-1] == end_token_id(bpe_tokenizer)
    assert encoded.prompt_ids.count(bpe_tokenizer.bos_token_id) == 1


@quick
@given(
    rows=st.lists(st.tuples(unicode_text, st.lists(unicode_text | st.just("so <|end|> it"), max_size=3)), max_size=4)
)
def test_rows_together_are_encoded_as_one_by_one(bpe_tokenizer: Any, rows: list[tuple[str, list[str]]]) -> None:
    together = encode_rows(bpe_tokenizer, [([user(question)], answers) for question, answers in rows])
    assert len(together) == len(rows)
    for (question, answers), found in zip(rows, together, strict=True):
        try:
            alone = [encode(bpe_tokenizer, [user(question)], answer) for answer in answers]
        except ControlTokenError:
            assert found is None
            continue
        assert found is not None
        assert found.prompt_ids == encode_prompt(bpe_tokenizer, [user(question)])
        assert found.response_ids == [each.response_ids for each in alone]


def test_the_response_may_be_a_text_or_one_message(tiny_tokenizer: Any, prompt: Any) -> None:
    assert encode(tiny_tokenizer, prompt, "wren owl saw") == encode(tiny_tokenizer, prompt, [assistant("wren owl saw")])
    with pytest.raises(ValueError, match="one message of the assistant"):
        encode(tiny_tokenizer, prompt, [user("wren")])


def test_conversations_of_several_turns_end_once(bpe_tokenizer: Any) -> None:
    prompt = [user("a"), assistant("b"), user("c")]
    encoded = encode(bpe_tokenizer, prompt, "d")
    assert encoded.prompt_ids.count(end_token_id(bpe_tokenizer)) == 1
    assert encoded.response_ids.count(end_token_id(bpe_tokenizer)) == 1


CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def test_the_newline_after_chatml_end_is_cut(fresh_bpe: Any, prompt: Any) -> None:
    fresh_bpe.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fresh_bpe.chat_template = CHATML
    end = fresh_bpe.convert_tokens_to_ids("<|im_end|>")
    assert end_token_id(fresh_bpe) == end != fresh_bpe.eos_token_id
    encoded = encode(fresh_bpe, prompt, "owl")
    assert encoded.response_ids[-1] == end
    assert whole_text(fresh_bpe, prompt, "owl").endswith("<|im_end|>\n")
    assert fresh_bpe.decode(encoded.response_ids) == "owl<|im_end|>"


def test_eos_is_added_where_the_template_ends_no_turn(fresh_bpe: Any, prompt: Any) -> None:
    fresh_bpe.chat_template = (
        "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    encoded = encode(fresh_bpe, prompt, "owl")
    assert fresh_bpe.decode(encoded.response_ids) == "owl" + fresh_bpe.eos_token
    fresh_bpe.eos_token = None
    fresh_bpe.chat_template += " "
    with pytest.raises(StepError, match="could not end"):
        encode(fresh_bpe, prompt, "owl")


def test_a_response_that_spells_the_end_token_is_unusable(bpe_tokenizer: Any, prompt: Any) -> None:
    with pytest.raises(ControlTokenError, match="spells a special token"):
        encode(bpe_tokenizer, prompt, "owl <|end|> and more")
    with pytest.raises(ControlTokenError, match="spells a special token"):
        encode(bpe_tokenizer, prompt, "<|user|> owl")


def test_a_template_that_is_no_prefix_is_refused(fresh_bpe: Any, prompt: Any) -> None:
    fresh_bpe.chat_template = (
        "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'go' }}{% endif %}"
    )
    with pytest.raises(StepError, match="template: plain"):
        encode(fresh_bpe, prompt, "owl")


def test_a_template_that_refuses_names_the_model(fresh_bpe: Any, prompt: Any) -> None:
    fresh_bpe.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(StepError, match="no system role"):
        encode_prompt(fresh_bpe, prompt)
    fresh_bpe.chat_template = None
    with pytest.raises(StepError, match="no chat template"):
        encode_prompt(fresh_bpe, prompt)


def test_decoding_stops_at_the_end_token(bpe_tokenizer: Any, prompt: Any) -> None:
    ids = encode(bpe_tokenizer, prompt, " owl ").response_ids
    assert decode_response(bpe_tokenizer, ids) == "owl"
    assert decode_response(bpe_tokenizer, ids[:-1]) == "owl"
    assert decode_response(bpe_tokenizer, [*ids, ids[0], bpe_tokenizer.pad_token_id]) == "owl"
    assert decode_response(bpe_tokenizer, []) == ""


def template_folder() -> Path:
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "chat_templates"


REAL = {
    "llama3": (["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"], "<|eot_id|>"),
    "gemma": (["<start_of_turn>"], "<end_of_turn>"),
    "phi3": (["<|user|>", "<|assistant|>"], "<|end|>"),
    "qwen2_5": (["<|im_start|>"], "<|im_end|>"),
    "qwen3": (["<|im_start|>"], "<|im_end|>"),
}


@pytest.mark.parametrize("name", REAL)
def test_templates_of_real_models(fresh_bpe: Any, prompt: Any, name: str) -> None:
    """The templates as TRL carries them, against transformers' own rendering of the whole conversation."""
    path = template_folder() / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"this TRL does not carry {path.name}")
    others, end = REAL[name]
    fresh_bpe.add_special_tokens({"extra_special_tokens": [*others, end]})
    fresh_bpe.chat_template = path.read_text()
    encoded = encode(fresh_bpe, prompt, "wren owl saw")
    whole = whole_text(fresh_bpe, prompt, "wren owl saw")
    text = fresh_bpe.decode(encoded.prompt_ids + encoded.response_ids)
    assert text == whole[: whole.index(end, whole.index("wren owl saw")) + len(end)]
    assert end_token_id(fresh_bpe) == fresh_bpe.convert_tokens_to_ids(end) == encoded.response_ids[-1]
    assert "wren owl saw" in fresh_bpe.decode(encoded.response_ids)
