"""Where runs are published: the settings, the names of repositories, and secrets that are shown to nobody."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdpo.config.hub import HubSettings, read_hub, readable_by_others, repo_name
from cdpo.config.problems import ConfigError

SECRET = "hf_averysecrettoken"


def settings(folder: Path, text: str) -> HubSettings:
    (folder / "services").mkdir(exist_ok=True)
    (folder / "services" / "huggingface.yaml").write_text(text)
    return read_hub(folder)


def test_without_settings_it_is_a_folder_unless_there_is_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert (read_hub(tmp_path).where, read_hub(tmp_path).owner) == ("local", "local")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert (read_hub(tmp_path).where, read_hub(tmp_path).owner) == ("huggingface", None)
    assert settings(tmp_path, "kind: local\norganization: lab\n").owner == "lab"
    assert settings(tmp_path, "").where == "huggingface"


def test_a_token_of_the_file_is_given_to_the_clients_and_does_not_replace_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setenv("HF_TOKEN", "of the environment")
    found = settings(tmp_path, f"token: {SECRET}\n")
    assert found.where == "huggingface"
    found.use_token()
    assert os.environ["HF_TOKEN"] == "of the environment"
    monkeypatch.delenv("HF_TOKEN")
    assert found.where == "huggingface", "the same before its token is put into the environment, and after"
    found.use_token()
    assert os.environ["HF_TOKEN"] == SECRET
    assert SECRET not in repr(found) + str(found.of_run("run"))


@pytest.mark.parametrize(
    "text",
    [
        f"token: [{SECRET}]\n",
        f"tokenn: {SECRET}\n",
        f"token: {SECRET}\nkind: hf\n",
        f"token: '{SECRET}\n",
        f"{{token: {SECRET}}}: 1\n",
        f"- {SECRET}\n",
    ],
)
def test_what_is_wrong_is_told_without_the_secret(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(tmp_path, text)
    assert "huggingface.yaml:" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_file_with_a_token_that_others_can_read_is_told_of(tmp_path: Path) -> None:
    settings(tmp_path, f"token: {SECRET}\n")
    file = tmp_path / "services" / "huggingface.yaml"
    for mode, told in ((0o644, file), (0o640, file), (0o600, None)):
        file.chmod(mode)
        assert readable_by_others(tmp_path) == told
    settings(tmp_path, "kind: local\n").use_token()
    file.chmod(0o644)
    assert readable_by_others(tmp_path) is None


def test_names_that_the_hub_takes_stay() -> None:
    for name in ("DPO_tiny_rows_beta0.1_s0", "a", "x" * 96):
        assert repo_name(name) == name


@given(st.lists(st.text(max_size=120), min_size=2, max_size=2, unique=True))
def test_every_name_becomes_one_that_the_hub_takes_and_no_two_the_same(names: list[str]) -> None:
    from huggingface_hub.utils import validate_repo_id

    made = [repo_name(name) for name in names]
    assert made[0] != made[1]
    for name in made:
        validate_repo_id(f"owner/{name}")
        assert re.fullmatch(r"[\w.-]{1,96}", name, re.ASCII)
