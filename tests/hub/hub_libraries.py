"""As hub_clients.py, by the libraries over huggingface_hub: datasets, transformers and peft."""

import sys

from huggingface_hub import HfApi


def rows() -> None:
    """Two configs of a dataset, by name and by revision."""
    from datasets import Dataset, DatasetDict, get_dataset_config_names, load_dataset

    # push_to_hub makes the repo
    easy = DatasetDict({"train": Dataset.from_dict({"x": [1, 2, 3]}), "test": Dataset.from_dict({"x": [4]})})
    easy.push_to_hub("ada/rows", "easy", private=True)
    Dataset.from_dict({"y": ["a", "b"]}).push_to_hub("ada/rows", "hard", split="train")
    api = HfApi()
    api.create_tag("ada/rows", tag="v1", repo_type="dataset")
    Dataset.from_dict({"y": ["c"]}).push_to_hub("ada/rows", "hard", split="train")
    assert api.dataset_info("ada/rows").private
    assert get_dataset_config_names("ada/rows") == ["easy", "hard"]
    assert load_dataset("ada/rows", "easy", split="train")["x"][:] == [1, 2, 3]
    assert load_dataset("ada/rows", "easy", split="test")["x"][:] == [4]
    assert load_dataset("ada/rows", "hard", split="train")["y"][:] == ["c"]
    assert load_dataset("ada/rows", "hard", split="train", revision="v1")["y"][:] == ["a", "b"]
    streamed = load_dataset("ada/rows", "easy", split="train", streaming=True)
    assert [row["x"] for row in streamed] == [1, 2, 3]


def models() -> None:
    """A tiny model of two revisions, and an adapter of it."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    words = Tokenizer(WordLevel({word: number for number, word in enumerate("abcdefgh")}, unk_token="a"))
    model = LlamaForCausalLM(config)
    model.push_to_hub("ada/tiny", private=True)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a").push_to_hub("ada/tiny")
    HfApi().create_tag("ada/tiny", tag="v1")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.push_to_hub("ada/tiny", commit_message="one more")
    old = AutoModelForCausalLM.from_pretrained("ada/tiny", revision="v1")
    new = AutoModelForCausalLM.from_pretrained("ada/tiny")
    for name, value in before.items():
        assert torch.equal(old.state_dict()[name], value)
    assert torch.equal(new.lm_head.weight, before["lm_head.weight"] + 1)
    assert AutoTokenizer.from_pretrained("ada/tiny", revision="v1").get_vocab()["h"] == 7

    adapted = get_peft_model(new, LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        adapted.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.fill_(0.5)
    adapted.push_to_hub("ada/adapter")
    base = AutoModelForCausalLM.from_pretrained("ada/tiny")
    loaded = PeftModel.from_pretrained(base, "ada/adapter", revision="main")
    asked = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(asked).logits, adapted.eval()(asked).logits)
    assert set(HfApi().list_repo_files("ada/adapter")) >= {"adapter_config.json", "adapter_model.safetensors"}


def main() -> None:
    name, *words = sys.argv[1:]
    globals()[name](*words)


if __name__ == "__main__":
    main()
