"""Tables for a paper: read back from Markdown and from LaTeX by parsers that know nothing of cdpo, and compared."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexMacroNode, LatexSpecialsNode, LatexWalker
from pylatexenc.latexwalker import get_default_latex_context_db as parsing
from pylatexenc.macrospec import std_macro
from test_select import a_store as a_store_with_a_sweep
from test_select import sweep

from cdpo.report.collect import collect, compare
from cdpo.report.matrix import compare_all
from cdpo.report.paper import comparison_table, matrix_tables, results_tables
from cdpo.report.tables import number
from cdpo.report.typeset import Mark, Number, Row, Symbol, Table, latex_text, to_latex, to_markdown
from tests.conftest import run_cdpo
from tests.results.made import key
from tests.results.test_results import a_store, evaluate

HOSTILE = [
    "a|b",
    r"50%_#&\~^{}$x$",
    "<script>alert(1)</script>",
    "Ünï 中文 β",
    "[x](y) *z* `c` __d__ _e_",
    "# h",
    "1. one",
    "--- '' `` ,,",
    r"\input{/etc/passwd} \\[3pt] \end{table}",
    "*",
    "[3pt]",
    "a\nb\r\n\n| c",
    "&amp; \\| <!-- -->",
    "www.example.org ![i](j)",
]


@pytest.fixture
def store(tmp_path):
    return a_store(tmp_path)


# -- reading -----------------------------------------------------------------------------------------------------------


def read_markdown(text):
    """[(title, head, rows, notes)] as a reader sees them: markup gone, cells as text."""
    found = []
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    for at, token in enumerate(tokens):
        before = tokens[at - 1].type if at else ""
        if token.type != "inline":
            assert token.type not in ("html_block", "heading_open", "blockquote_open", "hr", "code_block", "fence")
            if token.type == "tr_open":
                rows = found[-1][2]
                rows.append([])
        elif before == "paragraph_open" and tokens[at - 2].type == "list_item_open":
            found[-1][3].append(shown(token))
        elif before == "paragraph_open":
            assert [each.type for each in token.children if each.level == 0][0::2][1:2] != ["text"]
            found.append((shown(token), [], [], []))
        else:
            found[-1][2][-1].append(shown(token))
    return [(title, rows[0], rows[1:], notes) for title, _, rows, notes in found]


def shown(inline):
    """The text of a line; the only HTML is that of superscripts, shown as `^a`."""
    parts = []
    for each in inline.children:
        if each.type == "html_inline":
            assert each.content in ("<sup>", "</sup>")
            parts.append("^" if each.content == "<sup>" else "")
        else:
            assert each.type in ("text", "text_special", "strong_open", "strong_close"), each
            parts.append(each.content)
    return "".join(parts)


RULES = ("toprule", "midrule", "bottomrule", "addlinespace")
MACROS = {
    "textless": "<", "textgreater": ">", "textbar": "|", "textasciicircum": "^", "textasciigrave": "`",
    "allowbreak": "", "textsuperscript": "^%s",
}  # fmt: skip


def latex_walker(text):
    db = parsing()
    arguments = [std_macro("shortstack", True, 1), std_macro("textsuperscript", False, 1)]
    # what stands before a row takes what follows in brackets for its own
    arguments += [std_macro(name, True, 0) for name in RULES]
    db.add_context_category("cdpo", prepend=True, macros=arguments)
    return LatexWalker(text, latex_context=db, tolerant_parsing=False)


def read_text(nodes):
    db = get_default_latex_context_db()
    specs = [MacroTextSpec(name, text) for name, text in MACROS.items()]
    specs.append(MacroTextSpec("shortstack", lambda node, l2tobj: l2tobj.nodelist_to_text([node.nodeargd.argnlist[1]])))
    specs.append(MacroTextSpec("\\", ""))
    db.add_context_category("cdpo", prepend=True, macros=specs)
    reader = LatexNodes2Text(latex_context=db, math_mode="text", strict_latex_spaces=True)
    return " ".join(reader.nodelist_to_text(nodes).split())


def read_latex(text):
    """[(caption, column letters, head, rows)]"""
    nodes, _, _ = latex_walker(text).get_latex_nodes()
    found = []
    for node in nodes:
        if isinstance(node, LatexEnvironmentNode):
            assert node.environmentname == "table"
            inside = node.nodelist
            caption = next(
                inside[at + 1] if not each.nodeargd or not each.nodeargd.argnlist else each.nodeargd.argnlist[-1]
                for at, each in enumerate(inside)
                if isinstance(each, LatexMacroNode) and each.macroname == "caption"
            )
            (tabular,) = (each for each in inside if isinstance(each, LatexEnvironmentNode))
            letters = tabular.nodeargd.argnlist[-1].latex_verbatim()
            rows = cells_of(tabular.nodelist)
            found.append((read_text([caption]), letters, rows[0], rows[1:]))
    return found


def cells_of(nodes):
    rows, cell, cells = [], [], []
    for node in nodes:
        if isinstance(node, LatexMacroNode) and node.macroname in ("\\", *RULES):
            assert not node.nodeargd or not any(node.nodeargd.argnlist), "a cell was taken for an argument"
        if isinstance(node, LatexMacroNode) and node.macroname == "\\":
            rows.append([*cells, read_text(cell)])
            cell, cells = [], []
        elif isinstance(node, LatexSpecialsNode) and node.specials_chars == "&":
            cells.append(read_text(cell))
            cell = []
        elif not (isinstance(node, LatexMacroNode) and node.macroname in RULES):
            cell.append(node)
    assert read_text(cell) == "", "something behind the last row"
    return rows


def text_of(pieces):
    """What a reader must see of a cell."""
    return " ".join("".join(f"^{each}" if isinstance(each, Mark) else each for each in pieces).split())


def both(tables):
    """The tables as both parsers read them, which is what was to be written."""
    markdown, latex = read_markdown(to_markdown(tables)), read_latex(to_latex(tables, "x"))
    assert len(markdown) == len(latex) == len(tables)
    for table, in_markdown, in_latex in zip(tables, markdown, latex, strict=True):
        wanted = [[text_of(cell) for cell in row.cells] for row in table.rows]
        heads = [text_of([head.removeprefix(">")]) for head in table.columns]
        title, head, rows, notes = in_markdown
        assert (title, head, rows) == (text_of(table.title), heads, wanted)
        assert notes == [text_of(note) for note in table.notes]
        caption, letters, head, rows = in_latex
        assert (plainly(caption), head) == (plainly(text_of(table.title)), heads)
        assert [list(map(plainly, row)) for row in rows] == [list(map(plainly, row)) for row in wanted]
        columns = re.sub(r">\{[^}]*\}|\{[^}]*\}", "", letters[1:-1].replace("@{}", ""))
        assert len(columns) == len(heads)
        assert all(len(row) == len(heads) for row in rows)
    return markdown


def plainly(text):
    """LaTeX's Greek letters and powers of ten in letters; mathematics has blanks of its own."""
    for letter, name in {"β": "beta", "ρ": "rho"}.items():
        text = text.replace(letter, name)
    return re.sub(r"×10\^(-?\d+)", r"e\1", text).replace(" ", "")


# -- any text ----------------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs"]), max_size=40)
MARKED = st.text(st.sampled_from("a1_ -'`,*|\\#$%&{}[]<>~^\"!?.:\n()=+@"), max_size=25)


def table_of(text):
    columns = ["name", ">metric", "other"]
    row = Row([[text], [Number("-0.5")], ["x ", text]], origin=text)
    rows = [row, Row([["over seeds"], [""], [text]], continued=True), row]
    return Table(["about ", text], columns, rows, [["note ", text], [text]] if text.strip() else [])


@settings(deadline=None)  # a loaded machine is slow
@given(TEXTS | MARKED)
def test_any_text_comes_back(text):
    table = table_of(text)
    (found,) = read_markdown(to_markdown([table]))
    same = " ".join(text.split())
    assert [row[0] for row in found[2]] == [same, "over seeds", same]
    assert found[0] == " ".join(["about", *text.split()])
    assert all(note.endswith(same) for note in found[3])
    nodes, _, _ = latex_walker(latex_text([text])).get_latex_nodes()
    assert read_text(nodes) == same
    (caption, _, _, rows) = read_latex(to_latex([table], "x"))[0]
    assert [row[0] for row in rows] == [same, "over seeds", same]
    assert caption == " ".join(["about", *text.split()])
    # rows right below each other
    narrow = Table(["x"], ["name"], [Row([[text]]), Row([[text]])])
    assert both([narrow])[0][2] == [[same], [same]]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_shown_as_they_are(text):
    test_any_text_comes_back.hypothesis.inner_test(text)


def test_what_no_printer_knows_is_a_question_mark():
    text = to_latex([table_of("a\0b\x1b\u202e\ud800")], "x") + to_markdown([table_of("a\0b\x1b\u202e\ud800")])
    assert "a?b???" in text
    assert not re.search("[\0\x1b\u202e\ud800]", text)


def test_mathematics_in_latex():
    assert latex_text([Symbol("beta"), " = ", Number("1e-05")]) == r"$\beta$ = $1\times10^{-5}$"
    assert latex_text([Symbol("learning_rate"), " = ", Number("3e+10")]) == (
        r"learning\_\allowbreak{}rate = $3\times10^{10}$"
    )
    assert latex_text([Number("[-0.5, 1]"), Mark("a")]) == r"$[-0.5, 1]$\textsuperscript{a}"
    assert latex_text([Symbol("betas")]) == "betas"


# -- results -----------------------------------------------------------------------------------------------------------


TAG1 = "tag tag1, model tiny, dataset playground"


def ends(value):
    return "" if value["low"] is None else f"[{number(value['low'])}, {number(value['high'])}]"


def test_configurations_in_rows_metrics_in_columns(store):
    collected = collect(store.root)
    found = both(results_tables(collected))
    seen = set()
    names = {"DPO, beta = 0.1": "beta0.1", "DPO, beta = 0.5": "beta0.5", "SFT": "SFT_tiny_playground"}
    groups = {group["name"].rpartition("DPO_tiny_playground_")[2]: group for group in collected["groups"]}
    for title, head, rows, _ in found:
        if head[0] != "configuration":
            continue
        assert title.startswith(f"{TAG1}, split eval: the mean over n prompts")
        assert "95 % intervals" in title
        for at, row in enumerate(rows):
            if row[0].startswith("over"):
                continue
            group = groups[names[row[0].partition("^")[0]]]
            assert row[1] == str(len(group["seeds"]))
            for place, metric in enumerate(head[3:], start=3):
                value = group["metrics"].get(metric)
                seen.add((group["name"], metric))
                if value is None:
                    assert row[place] == rows[at + 1][place] == ""
                    continue
                assert row[place].partition("^")[0] == number(value["mean"])
                assert row[2] == str(value["n"])
                assert rows[at + 1][0] == "over prompts"
                assert rows[at + 1][place] == ends(value)
                if value["between_seeds"]:
                    assert rows[at + 2][0] == "over seeds"
                    assert rows[at + 2][place] == ends(value["between_seeds"])
    assert {(group["name"], metric) for group in groups.values() for metric in group["metrics"]} <= seen


def test_what_a_reviewer_asks_for_is_below(store):
    found = both(results_tables(collect(store.root)))
    _, head, rows, notes = found[0]
    (half,) = (row for row in rows if row[0].startswith("DPO, beta = 0.5"))
    letters = half[0].partition("^")[2].split(",")
    told = {note[1:2]: note[2:].strip() for note in notes if note[0] == "^"}
    assert [told[letter] for letter in letters] == [
        "unfinished: not all of its runs have all of their steps",
        "reward/mean: the evaluation reward also trained it",
        f"{', '.join(head[3:])}: of seeds 0 1 only 0",
    ]
    everything = "\n".join(notes)
    for wanted in ("Conditional on seeds 0, 1: the model", "on these prompts", "Wilson", "corrected by Holm"):
        assert wanted in everything
    # of those that differ in their seeds, each says what holds for it
    assert "paired over" not in everything
    assert re.search(r"Conditional on seed 0: .*\(DPO, beta = 0\.5\)\.", everything)


def test_gains_over_the_baseline_are_marked_and_told(store):
    collected = collect(store.root)
    found = both(results_tables(collected))
    versus = {title: (head, rows, notes) for title, head, rows, notes in found if " minus " in title}
    head, rows, notes = versus[f"{TAG1}: DPO, beta = 0.1 minus SFT, from which it was trained; paired by prompt."]
    group = next(each for each in collected["groups"] if each["name"] == "DPO_tiny_playground_beta0.1")
    tests = [p["p"] for each in collected["groups"] if each["versus"] for p in each["versus"]["metrics"].values()]
    row = dict(zip(head, next(row for row in rows if row[0] == "gold/mean"), strict=True))
    below = rows[[row[0] for row in rows].index("gold/mean") + 1]
    value = group["versus"]["metrics"]["gold/mean"]
    assert row["difference"] == number(value["difference"])
    assert row["95 % interval"] == ends(value)
    assert (below[0], below[2]) == ("over seeds", ends(value["between_seeds"]))
    assert (row["n"], row["wins/ties/losses"]) == ("60", f"{value['wins']}/{value['ties']}/{value['losses']}")
    assert f"p (Holm): corrected for {len(tests)} such comparisons of the tag." in notes
    assert not any(note.startswith("Up to") for note in notes)
    # a star where even the number of tests times p is small, none where p itself is large
    _, head, rows, _ = found[0]
    for label, name in (("DPO, beta = 0.1", "DPO_tiny_playground_beta0.1"), ("SFT", "SFT_tiny_playground")):
        group = next(each for each in collected["groups"] if each["name"] == name)
        row = next(row for row in rows if row[0].partition("^")[0] == label)
        for metric, cell in zip(head[3:], row[3:], strict=True):
            p = ((group["versus"] or {"metrics": {}})["metrics"].get(metric) or {"p": None})["p"]
            if p is None or p > 0.05:
                assert "*" not in cell
            elif p * len(tests) < 0.05:
                assert cell.endswith("^*")


def test_p_values_are_corrected_for_all_comparisons_of_a_tag(store):
    """Of two p values of .03, neither is significant; a single one is."""
    collected = collect(store.root)
    groups = [group for group in collected["groups"] if group["method"] == "DPO"]
    versus = groups[0]["versus"]
    value = versus["metrics"]["gold/mean"] | {"p": 0.03}
    for group in groups:
        group["versus"] = versus | {"metrics": {"gold/mean": value}}
    found = both(results_tables(collected))
    assert not any("*" in cell for _, _, rows, _ in found for row in rows for cell in row)
    assert [rows[0][3:5] for title, _, rows, _ in found if " minus " in title] == [["0.0300", "0.0600"]] * 2
    groups[1]["versus"] = None
    assert any("^*" in cell for _, _, rows, _ in both(results_tables(collected)) for row in rows for cell in row)


def test_rows_of_unlike_sizes_say_so_and_what_is_left_out(store):
    evaluate(store, "tag1", "short_s0", "BASE", 0, {"limit": 20}, [key("PREP")], np.full(20, 0.3), limit=20)
    collected = collect(store.root)
    group = next(each for each in collected["groups"] if each["name"] == "short")
    group["metrics"]["reward/mean"] |= {"n": 19}
    group["versus"] = {
        "name": "gone|away",
        "metrics": compare(store.root, "short", "SFT_tiny_playground")["metrics"],
        "not_compared": {"reward/mean": "it means different things"},
    }
    found = both(results_tables(collected))
    _, _, rows, _ = found[0]
    row = next(row for row in rows if row[0] == "BASE, limit = 20")
    assert row[2] == ""
    assert row[3] == "3.000 (n = 19)^*"
    (notes,) = (notes for title, _, _, notes in found if "gone|away" in title)
    assert "Up to 40 prompts have a value on one side only and are left out." in notes
    assert "not compared: reward/mean: it means different things." in notes


def test_configurations_that_look_alike_go_by_their_names(store):
    collected = collect(store.root)
    first = collected["groups"][0]
    collected["groups"].append({**first, "name": f"{first['name']}~abcdef", "versus": None})
    labels = {row[0].partition("^")[0] for row in both(results_tables(collected))[0][2]}
    assert {first["name"], f"{first['name']}~abcdef"} <= labels
    collected["groups"][-1]["model"] = "large"
    labels = {row[0].partition("^")[0] for row in both(results_tables(collected))[0][2]}
    assert {"DPO large, beta = 0.1", "DPO tiny, beta = 0.1", "SFT tiny"} <= labels


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_values_break_no_table(store, text):
    collected = collect(store.root)
    for group in collected["groups"]:
        group |= {"method": text, "params": {**group["params"], text: text}, "tag": text, "marks": [text, "other"]}
        group["metrics"] = {f"{text}/{name}": value for name, value in group["metrics"].items()}
        for value in group["metrics"].values():
            value |= {"split": text, "conditional_on": text}
    for model in collected["reward_models"]:
        model["name"] = text
    both(results_tables(collected))
    found = compare(store.root, "DPO_tiny_playground_beta0.1", "SFT_tiny_playground")
    both(comparison_table({**found, "a": text, "not_compared": {text: text}}))


def test_selected_values_and_their_comparisons(tmp_path):
    store = a_store_with_a_sweep(tmp_path)
    sweep(store, "DPO", 1)
    collected = collect(store.root)
    found = both(results_tables(collected))
    assert "swept values chosen on tune" in found[0][0]
    assert found[0][1] == ["configuration", "chosen", "from", "not judged"]
    assert len(found[0][2]) == len([each for each in collected["selections"] if each["metric"] == "gold/mean"])
    (chosen,) = (each for each in found if "of the chosen configurations" in each[0])
    # what they all share is above, and not in each row
    assert found[1][0].startswith("tag sweep, model tiny, dataset playground, GEN.split = eval, split eval: ")
    assert {row[0] for row in found[1][2]} >= {"SFT", "DPO, learning_rate = 0.0006"}
    pair = collected["comparisons"][0]
    value = pair["metrics"]["gold/mean"]
    assert chosen[2][0][:3] == [f"{pair['a_label']} minus {pair['b_label']}", number(value["difference"]), ends(value)]
    assert chosen[2][1][2] == ends(value["between_seeds"])


def test_reward_models_and_a_configuration_without_numbers(store):
    (model,) = collect(store.root)["reward_models"]
    title, head, rows, _ = both(results_tables(collect(store.root)))[-1]
    assert "Reward models" in title
    assert rows[0][0] == "tiny_playground_s0"
    for name, cell, below in zip(head[2:], rows[0][2:], rows[1][2:], strict=True):
        assert cell == f"{number(model['metrics'][name]['mean'])} (n = 60)"
        assert below == ends(model["metrics"][name])
    alone = collect(store.root)
    alone["groups"] = [{**alone["groups"][0], "metrics": {}, "versus": None, "state": "unfinished"}]
    (_, head, rows, notes), *_ = both(results_tables(alone))
    assert head == ["configuration", "seeds", "n"]
    assert rows == [["DPO, beta = 0.1^a", "2", ""]]
    assert any("unfinished" in note for note in notes)
    assert results_tables({"groups": [], "runs": []}) == []


# -- comparisons -------------------------------------------------------------------------------------------------------


def test_two_compared(store):
    evaluate(store, "tag1", "short_s0", "BASE", 0, {}, [key("PREP")], np.full(20, 0.3), limit=20, rm="another")
    compared = compare(store.root, "short_s0", "SFT_tiny_playground_s0")
    ((title, head, rows, notes),) = both(comparison_table(compared))
    assert title == "tag1/short_s0 minus tag1/SFT_tiny_playground_s0, paired by prompt."
    assert head == ["metric", "difference", "95 % interval", "p", "n", "wins/ties/losses"]
    assert [row[0] for row in rows] == list(compared["metrics"])
    value = compared["metrics"]["gold/mean"]
    record = f"{value['wins']}/{value['ties']}/{value['losses']}"
    assert rows[0] == ["gold/mean", number(value["difference"]), ends(value), f"{value['p']:.4f}", "20", record]
    text = "\n".join(notes)
    for wanted in ("not compared: reward/mean: it means", "Up to 40 prompts", "not adjusted"):
        assert wanted in text
    assert value["conditional_on"] in text


def test_all_with_all(store):
    evaluate(store, "tag1", "short_s0", "BASE", 0, {"limit": 20}, [key("PREP")], np.full(20, 0.3), limit=20)
    evaluate(store, "tag1", "empty_s1", "BASE", 1, {}, [key("PREP")], np.full(0, 0.3), limit=0)
    compared = compare_all(store.root, "gold/mean")
    ranking, pairs = both(matrix_tables(compared))
    labels = {run["number"]: run for run in compared["runs"]}
    means = [labels[int(row[0])]["mean"] for row in ranking[2]]
    assert means == sorted(means, reverse=True)
    for row in ranking[2]:
        run = labels[int(row[0])]
        own = ", ".join([run["method"], *(f"{name} = {value}" for name, value in run["params"].items())])
        assert row[1] == own
        assert row[2:5] == [" ".join(map(str, run["seeds"])), str(run["n"]), number(run["mean"])]
    assert any(note.startswith("left out: tag1/empty: has no gold/mean yet") for note in ranking[3])
    assert any("No Elo" in note for note in ranking[3]) == (len({run["group"] for run in compared["runs"]}) > 1)
    rows = iter(pairs[2])
    for pair in compared["pairs"]:
        row = dict(zip(pairs[1], next(rows), strict=True))
        assert row["pair"] == f"{pair['b']} - {pair['a']}"
        assert (row["difference"], row["95 % interval"]) == (number(pair["difference"]), ends(pair))
        assert (row["n"], row["verdict"]) == (str(pair["n"]), pair["verdict"])
        assert row["smallest"] == number(pair["smallest"])
        if pair["between_seeds"]:
            below = next(rows)
            assert (below[0], below[2]) == ("over seeds", ends(pair["between_seeds"]))
    assert next(rows, None) is None
    text = "\n".join(pairs[3])
    for wanted in ("corrected by Holm for all 6 pairs", "Up to 40 prompts", "found in 80 %", "conditional on"):
        assert wanted in text


# -- the commands, and LaTeX itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["results"], ["compare", "DPO_tiny_playground_beta0.1", "SFT_tiny_playground"]])
def test_one_form_at_a_time(store, tmp_path, command):
    words = [*command, "--store", store.root]
    markdown = run_cdpo(*words, "--markdown", cwd=tmp_path).stdout
    assert read_markdown(markdown)
    assert [each[0] for each in read_latex(run_cdpo(*words, "--latex", cwd=tmp_path).stdout)]
    assert json.loads(run_cdpo(*words, "--json", "--json", cwd=tmp_path).stdout)
    for flags in (["--json", "--latex"], ["--markdown", "--latex"]):
        refused = run_cdpo(*words, *flags, cwd=tmp_path, check=2)
        assert (refused.stdout, f"{flags[0]} and {flags[1]}: one form at a time" in refused.stderr) == ("", True)


def test_a_matrix_and_an_empty_store_by_command(store, tmp_path):
    words = ["compare", "--metric", "gold/mean", "--store", store.root]
    assert len(read_markdown(run_cdpo(*words, "--markdown", cwd=tmp_path).stdout)) == 2
    assert r"\label{tab:matrix-2}" in run_cdpo(*words, "--latex", cwd=tmp_path).stdout
    (tmp_path / "empty").mkdir()
    for form, beginning in (("--markdown", "No runs yet"), ("--latex", "% No runs yet")):
        said = run_cdpo("results", form, "--store", tmp_path / "empty", cwd=tmp_path).stdout
        assert said.startswith(beginning)
        assert "\n" not in said.strip()


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex here")
def test_pdflatex_sets_it(store, tmp_path):
    names = [text for text in HOSTILE if text.isascii()]  # others need another LaTeX
    tables = results_tables(collect(store.root)) + [table_of(text) for text in names]
    (tmp_path / "tables.tex").write_text(to_latex(tables, "x"), encoding="utf-8")
    lines = [r"\documentclass{article}", r"\usepackage{array,booktabs}", r"\begin{document}", r"\input{tables}"]
    (tmp_path / "paper.tex").write_text("\n".join([*lines, r"\end{document}", ""]), encoding="utf-8")
    command = ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
