"""Finding a user's function, and saying what is wrong with a reference."""

import pytest

from cdpo.errors import UsageError
from cdpo.plugins import load_plugin


def test_a_file_and_a_package(tmp_path, monkeypatch):
    (tmp_path / "my.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Pair:\n    a: int\ndef f(x):\n    return Pair(x)\n"
    )
    assert load_plugin(f"{tmp_path}/my.py:f")(3).a == 3
    monkeypatch.chdir(tmp_path)
    assert load_plugin("./my.py:f") is load_plugin(f"{tmp_path}/my.py:f")
    assert load_plugin("json.decoder:JSONDecoder").__name__ == "JSONDecoder"


def test_two_files_of_one_name_stay_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "my.py").write_text(f"def f():\n    return {folder!r}\n")
    assert [load_plugin(f"{tmp_path}/{folder}/my.py:f")() for folder in "ab"] == ["a", "b"]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("my.py", "names no function"),
        (":f", "names no function"),
        ("my.py:", "names no function"),
        ("my.py:f()", "names no function"),
        ("absent.py:f", r"there is no file .*absent\.py.*'f'"),
        ("my.py:g", r"my\.py has no function 'g'; it has f"),
        ("my.py:number", "is no function but int"),
        ("broken.py:f", r"broken\.py.*cannot be run: ValueError: oh"),
        ("syntax.py:f", r"syntax\.py.*SyntaxError"),
        ("no_such_package.x:f", "no_such_package.*cannot be imported"),
        ("json:nothing", "json has no function 'nothing'"),
    ],
)
def test_what_cannot_be_loaded_is_named(tmp_path, monkeypatch, reference, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text("number = 3\ndef f():\n    pass\n")
    (tmp_path / "broken.py").write_text("raise ValueError('oh')\n")
    (tmp_path / "syntax.py").write_text("def f(:\n")
    with pytest.raises(UsageError, match=said):
        load_plugin(reference)
