"""Models and tokenizers from local folders, in the type and on the device that a step asks for."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import logging as transformers_logging

from cdpo import trust
from cdpo.errors import StepError
from cdpo.step import Device
from cdpo.weights import stored_dtype

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

transformers_logging.disable_progress_bar()


def set_threads(device: Device) -> None:
    torch.set_num_threads(device.threads)


def torch_device(device: Device) -> torch.device:
    """The card of this process: under torchrun the one numbered LOCAL_RANK among those it may see."""
    if device.kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StepError(
            f"the step was given a {device.kind} device and torch sees none: check the driver (`nvidia-smi`), "
            "CUDA_VISIBLE_DEVICES and that torch is a CUDA build, or let devices.yaml give it a CPU"
        )
    card = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(card)
    return card


def compute_dtype(dtype: str, folder: Path, device: torch.device) -> str:
    """What a step computes in: `dtype`, or with `auto` what the checkpoint is stored in."""
    kind = stored_dtype(folder) if dtype == "auto" else dtype
    if kind == "fp16" and device.type == "cpu":
        raise StepError(f"{folder}: fp16 is not computed on a CPU; write `dtype: fp32` (or bf16)")
    return kind


def load_tokenizer(folder: Path, adapter: Path | None = None, template: str | None = None) -> Any:
    """The tokenizer of a model, or of its adapter where that brought its own; pad token and chat template are set.

    Raises StepError where the folder has no tokenizer, or no chat template and `template` names none.
    """
    from cdpo.data.templates import use_template

    source = adapter if adapter is not None and (adapter / "tokenizer_config.json").exists() else folder
    tokenizer = read_tokenizer(source)
    use_template(tokenizer, template)
    return tokenizer


def read_tokenizer(source: Path) -> Any:
    """The tokenizer of a folder as it is, but for a pad token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **_from(source))
    except (OSError, ValueError, ImportError) as error:
        raise _unread(source, error, "holds no tokenizer that transformers can read") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_config(folder: Path) -> Any:
    """The configuration of the model in `folder`. Raises StepError where transformers cannot read one."""
    try:
        return AutoConfig.from_pretrained(folder, **_from(folder))
    except (OSError, ValueError, ImportError) as error:
        raise _unread(folder, error, "holds no model that transformers can read") from error


def refuse_own_code(folder: Path, kind: Any, name: str) -> None:
    """Raise StepError where a model that is not trusted needs code of its own to be read, by the auto class `kind`."""
    try:
        config = AutoConfig.from_pretrained(folder, **_from(folder))
        with torch.device("meta"):
            kind.from_config(config, trust_remote_code=False)
        AutoTokenizer.from_pretrained(folder, **_from(folder))
    except Exception as error:  # anything else is said where the model is read
        if _wants_trust(folder, error):
            raise StepError(trust.refusal(folder, name)) from error


def _from(folder: Path) -> dict[str, Any]:
    """How every model is read. Without a word about trust transformers would ask whoever sits at the terminal."""
    return {"local_files_only": True, "trust_remote_code": trust.allowed(folder)}


def _unread(folder: Path, error: Exception, what: str) -> StepError:
    if _wants_trust(folder, error):
        return StepError(trust.refusal(folder))
    # where its code has no such class, transformers names every model that there is
    return StepError(f"{folder} {what}: {str(error).partition('Model type should be one of')[0].strip()}")


def _wants_trust(folder: Path, error: Exception) -> bool:
    return not trust.allowed(folder) and "trust_remote_code" in str(error) and bool(trust.own_code(folder))


def load_policy(
    folder: Path,
    adapter: Path | None = None,
    *,
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
    device: torch.device,
    quantization: str | None = None,
) -> Any:
    """A causal language model in eval mode, its weights in the type it computes in; with `adapter` a peft model."""
    kind = compute_dtype(dtype, folder, device)
    model = read_weights(
        AutoModelForCausalLM, folder, DTYPES[kind], attn_implementation, device=device, quantization=quantization
    )
    return _with_adapter(model, adapter).eval()


def load_reward(
    folder: Path,
    adapter: Path | None = None,
    *,
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
    device: torch.device,
    quantization: str | None = None,
) -> Any:
    """A reward model: a sequence classifier with one label, in eval mode; `logits[:, 0]` is the reward.

    Raises StepError where the folder has no trained score head (a causal language model), or more than one label.
    """
    kind = compute_dtype(dtype, folder, device)
    model, missing = read_weights_and_missing(
        AutoModelForSequenceClassification,
        folder,
        DTYPES[kind],
        attn_implementation,
        device=device,
        quantization=quantization,
        num_labels=None if adapter is None else 1,
    )
    if adapter is None and missing:
        raise StepError(
            f"{folder} is not a reward model: it has no trained {', '.join(sorted(missing))}. "
            "Name a sequence-classification model, or train one with an RM step"
        )
    if model.config.num_labels != 1:
        raise StepError(f"{folder} gives {model.config.num_labels} labels; a reward model has one")
    if model.config.get_text_config().pad_token_id is None:
        tokenizer = AutoTokenizer.from_pretrained(adapter or folder, **_from(adapter or folder))
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return _with_adapter(model, adapter).eval()


def read_weights(kind: Any, folder: Path, weights: torch.dtype, attn_implementation: str, **options: Any) -> Any:
    return read_weights_and_missing(kind, folder, weights, attn_implementation, **options)[0]


def read_weights_and_missing(
    kind: Any,
    folder: Path,
    weights: torch.dtype,
    attn_implementation: str,
    *,
    device: torch.device,
    quantization: str | None = None,
    num_labels: int | None = None,
) -> tuple[Any, set[str]]:
    """A model of the auto class `kind` on `device`, and the names of the weights that the folder did not hold."""
    check_attention(attn_implementation, device)
    _check_format(folder, kind.__name__)
    options: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    if quantization is not None:
        options |= {"quantization_config": _four_bits(weights, device), "device_map": {"": device}}
    try:
        with _quietly():
            model, info = kind.from_pretrained(
                folder,
                dtype=weights,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                output_loading_info=True,
                **_from(folder),
                **options,
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _unread(folder, error, "cannot be read as a model") from error
    if quantization is None:
        model = model.to(device)
    return model, set(info["missing_keys"])


def check_attention(attn_implementation: str, device: torch.device) -> None:
    if attn_implementation != "flash_attention_2":
        return
    if device.type != "cuda" or importlib.util.find_spec("flash_attn") is None:
        lack = "a CUDA device" if device.type != "cuda" else "the package flash_attn (`pip install flash-attn`)"
        raise StepError(f"attn_implementation: flash_attention_2 needs {lack}; write `attn_implementation: sdpa`")


def build(spec: dict[str, Any], folder: Path) -> None:
    """Write the model that `spec` describes (an input of the form `{"built": spec}`) to `folder`."""
    from cdpo.data.tiny import build_tiny

    if spec.get("kind") != "tiny":
        raise StepError(f"cdpo can build a model of kind 'tiny', not {spec.get('kind')!r}")
    build_tiny(spec, folder)


def _with_adapter(model: Any, adapter: Path | None) -> Any:
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter)


def pickles_only(folder: Path) -> bool:
    return not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin"))


def _check_format(folder: Path, kind: str) -> None:
    if not (folder / "config.json").exists():
        raise StepError(f"{folder} is not a model folder: it has no config.json")
    if pickles_only(folder):
        raise StepError(
            f"{folder} holds its weights as pickles only, which may run code when read. Convert them where you trust "
            f"them: transformers.{kind}.from_pretrained(folder).save_pretrained(new_folder)"
        )


def _four_bits(compute: torch.dtype, device: torch.device) -> Any:
    missing = []
    if device.type != "cuda":
        missing.append("a CUDA device")
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes (`pip install 'cdpo[quantization]'`)")
    if missing:
        raise StepError(f"quantization: nf4 needs {' and '.join(missing)}; leave it out, or use `lora` alone")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


class _quietly:
    """No load report: what is missing is judged by the caller, not printed."""

    def __enter__(self) -> None:
        self._level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self._level)
