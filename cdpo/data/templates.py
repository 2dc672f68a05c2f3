"""cdpo's own chat templates, for models that have none and for the formats that the released package used."""

from typing import Any

from cdpo.errors import StepError

# The blank before a response belongs to the response, so that its first word is tokenised as words are.
_PLAIN = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ 'Human: ' + message['content'] + '\\n\\nAssistant:' }}
{%- elif message['role'] == 'assistant' -%}
{{ ' ' + message['content'] + eos_token + ('' if loop.last else '\\n\\n') }}
{%- else -%}{{ message['content'] + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}"""

_INST = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' -%}{{ ' ' + message['content'] + eos_token }}
{%- else -%}{{ message['content'] + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}"""

# The text as it is, for base models and prompts that bring their own format.
_RAW = """\
{%- for message in messages -%}
{{ message['content'] + (eos_token if message['role'] == 'assistant' else '') }}
{%- endfor -%}"""

#: by the name that `template:` takes; the assistant's turn is opened by the user's, so a generation prompt adds nothing
TEMPLATES = {"plain": _PLAIN, "inst": _INST, "raw": _RAW}


def use_template(tokenizer: Any, name: str | None) -> None:
    """Give `tokenizer` the template `name`; with None keep its own.

    The text begins with the BOS token where the tokenizer puts one before every text: so was the model trained.
    Raises StepError, naming the model, for an unknown name and for a tokenizer that has no template and is given none.
    """
    model = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
    if name is None:
        if not tokenizer.chat_template:
            raise StepError(
                f"{model} has no chat template; choose one of cdpo's: "
                + " or ".join(f"`template: {each}`" for each in TEMPLATES)
            )
        return
    if name not in TEMPLATES:
        raise StepError(f"{model}: unknown template {name!r}; cdpo has {', '.join(TEMPLATES)}")
    if tokenizer.eos_token is None:
        raise StepError(f"{model} has no EOS token, with which the template {name!r} ends a response")
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    tokenizer.chat_template = ("{{ bos_token }}" if adds_bos else "") + TEMPLATES[name]
