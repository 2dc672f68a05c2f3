"""cdpo's own templates: the released formats, as transformers renders them."""

from typing import Any

import pytest

from cdpo.data.messages import assistant, user
from cdpo.data.templates import TEMPLATES, use_template
from cdpo.data.tokens import encode
from cdpo.errors import StepError

CONVERSATION = [user("Hello"), assistant("Hi."), user("Name a bird"), assistant("owl")]
WHOLE = {
    "plain": "Human: Hello\n\nAssistant: Hi.<|end|>\n\nHuman: Name a bird\n\nAssistant: owl<|end|>",
    "inst": "[INST] Hello [/INST] Hi.<|end|>[INST] Name a bird [/INST] owl<|end|>",
    "raw": "HelloHi.<|end|>Name a birdowl<|end|>",
}
RESPONSE = {"plain": " owl<|end|>", "inst": " owl<|end|>", "raw": "owl<|end|>"}
SYSTEM = {"plain": "Be brief.\n\nHuman", "inst": "Be brief.\n\n[INST]", "raw": "Be brief.Hello"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_whole_conversation(fresh_bpe: Any, name: str) -> None:
    use_template(fresh_bpe, name)
    assert fresh_bpe.apply_chat_template(CONVERSATION, tokenize=False) == WHOLE[name]
    encoded = encode(fresh_bpe, CONVERSATION[:-1], CONVERSATION[-1:])
    assert fresh_bpe.decode(encoded.prompt_ids + encoded.response_ids) == WHOLE[name]
    assert fresh_bpe.decode(encoded.response_ids) == RESPONSE[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_message_stands_first(fresh_bpe: Any, name: str) -> None:
    use_template(fresh_bpe, name)
    text = fresh_bpe.apply_chat_template([{"role": "system", "content": "Be brief."}, user("Hello")], tokenize=False)
    assert text.startswith(SYSTEM[name])


def test_bos_stands_first_where_the_tokenizer_puts_one(fresh_bpe: Any) -> None:
    use_template(fresh_bpe, "plain")
    assert not fresh_bpe.apply_chat_template(CONVERSATION, tokenize=False).startswith("<|bos|>")
    from tokenizers.processors import TemplateProcessing

    fresh_bpe.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", fresh_bpe.bos_token_id)]
    )
    use_template(fresh_bpe, "plain")
    assert encode(fresh_bpe, CONVERSATION[:1], "x").prompt_ids.count(fresh_bpe.bos_token_id) == 1
    assert encode(fresh_bpe, CONVERSATION[:1], "x").prompt_ids[0] == fresh_bpe.bos_token_id


def test_what_cannot_be_had_is_refused_by_name(fresh_bpe: Any, bpe_folder: Any) -> None:
    with pytest.raises(StepError, match="unknown template 'plane'; cdpo has plain, inst"):
        use_template(fresh_bpe, "plane")
    own = fresh_bpe.chat_template
    use_template(fresh_bpe, None)
    assert fresh_bpe.chat_template == own
    fresh_bpe.chat_template = None
    with pytest.raises(StepError, match=f"{bpe_folder} has no chat template.*plain.*inst"):
        use_template(fresh_bpe, None)
    fresh_bpe.eos_token = None
    with pytest.raises(StepError, match="no EOS token"):
        use_template(fresh_bpe, "plain")
