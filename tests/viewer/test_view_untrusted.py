"""Texts that nobody vouches for, in a real browser: shown as text, and nothing of them is done."""

from pathlib import Path

import pytest

from cdpo.data.prepared import write_split
from cdpo.generate.responses import write_responses
from cdpo.store import Store
from tests.conftest import run_cdpo
from tests.results.made import finish, key, record
from tests.viewer.served import CHROMIUM, browser, serve
from tests.viewer.test_view_compare import answer, complete, write_verdicts
from tests.viewer.visit import visiting

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: `make browser` installs it")

RUN = "</textarea></style><script>window.pwned=1</script><img src=http://192.0.2.1/x onerror=window.pwned=2>"
HOVER = "\" onmouseover='window.pwned=3' autofocus onfocus=window.pwned=4 x=\""
SVG = "<svg onload=window.pwned=5><iframe srcdoc='<script>top.pwned=6</script>'>"
LINKS = "[press](javascript:window.pwned=7) ![i](http://192.0.2.1/i.png) www.example.org me@example.org"
MARKDOWN = "# head **bold** :red[x] :material/home: `code` | a | b | $5 and $$\\frac{1}{2}$$ or $x$"
TEMPLATE = "{{ 7*7 }} {% raw %} ${7*7} %s"
EMOJI = "family 👩 flag 🏳 done"
RTL = "שלום עולם, مرحبا بالعالم"
WORDS = "many words here "
#: kind -> a text, and what of it is to be read on the screen
TEXTS: dict[str, tuple[str, list[str]]] = {
    "html": (f"{RUN} {HOVER} {SVG}", ["<script>window.pwned=1</script>", HOVER, SVG]),
    "markup": (f"{LINKS} {MARKDOWN} {TEMPLATE}", [LINKS, MARKDOWN, TEMPLATE]),
    "controls": (
        "\x1b[31mred\x1b[0m \x07bell nul\x00nul safe \u202egnp.exe\u202c end",
        ["\\u001b[31mred\\u001b[0m \\u0007bell", "nul\\u0000nul", "safe \\u202egnp.exe\\u202c end"],
    ),
    "letters": (f"{RTL} {EMOJI}", [RTL, EMOJI]),
    "one word": ("w" * 200_000, ["w" * 1000]),
    "long": (WORDS * 65_536, [WORDS * 100]),
}
#: names of runs come from the user, who may have copied them
NAMES = ("A_<b>b</b>_$x$", "B_*y*_[l](http:--192.0.2.1)")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """Two runs that answered one prompt for each of TEXTS, a judge who said the same of them, and a dataset of them."""
    store = Store(tmp_path_factory.mktemp("hostile") / ".cdpo")
    ids = [f"{at:016x}" for at in range(len(TEXTS))]
    texts = [text for text, _ in TEXTS.values()]
    prep = finish(store, "PREP", "bad_data", key("prep"))
    rows = [
        {
            "prompt_id": each,
            "prompt": [{"role": "user", "content": text[:2000]}],
            "chosen": [{"role": "assistant", "content": text}],
            "rejected": [{"role": "assistant", "content": f"not {text}"}],
        }
        for each, text in zip(ids, texts, strict=True)
    ]
    write_split(store.find(prep) / "out", "train", rows)
    complete(store.find(prep))
    made = {}
    for name in "AB":
        made[name] = finish(
            store, "GEN", name, key("GEN", name), params={"split": "eval"}, inputs={"data": {"step": prep}}
        )
        answers = [
            answer(each, text[:2000], f"{text}{name}", role=text[:30]) for each, text in zip(ids, texts, strict=True)
        ]
        write_responses(store.find(made[name]) / "out", answers)
        complete(store.find(made[name]))
    verdicts = [
        {"split": "eval", "prompt_id": each, "sample": 0, "order": order, "verdict": "first", "first": None,
         "second": None, "rating": None, "why": text[:500], "answer": text, "model": text[:50]}
        for each, text in zip(ids, texts, strict=True) for order in (0, 1)
    ]  # fmt: skip
    judged = finish(
        store, "WINRATE", "m", key("WINRATE", "m"), params={"judge": "<b onclick=window.pwned=8>$j$</b>"},
        inputs={"first": {"step": made["A"]}, "second": {"step": made["B"]}},
        table={"split": "eval", "prompt_id": ids, "judge_win": [0.5] * len(ids)}, summary={"rows": len(ids)},
    )  # fmt: skip
    write_verdicts(store, judged, verdicts)
    for at, name in enumerate("AB"):
        record(store, "t", NAMES[at], name, 0, {"beta": f"<i>{at}</i>"}, [prep, made[name], judged])
    return store.root


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def tabs(chromium):
    """What tabs are opened in."""
    return chromium.new_context()


@pytest.fixture(scope="module")
def address(hostile):
    with serve(hostile) as found:
        yield found


def shown(visit) -> str:
    return "\n".join(str(each) for each in visit.page.locator(".cdpo-text").all_text_contents())


def is_harmless(visit) -> None:
    """Nothing of a text became a part of the page."""
    assert not visit.wide()
    assert visit.page.locator("[data-testid=stMain] :is(script, iframe, object, embed)").count() == 0
    assert visit.page.locator("img[src*='192.0.2']").count() == 0
    elsewhere = "all => all.filter(one => one.host !== location.host).map(one => one.href)"
    assert visit.page.eval_on_selector_all("a[href]", elsewhere) == []
    assert visit.page.locator("[onerror], [onload], [onmouseover], [onfocus], [onclick]").count() == 0


#: the others take their time, and go the same way
QUICK = ("html", "controls", "letters")


@pytest.mark.parametrize(
    "kind", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in TEXTS]
)
def test_responses_are_text_in_compare_and_in_datasets(tabs, address, kind):
    prompt = f"{list(TEXTS).index(kind):016x}"
    with visiting(tabs, address) as visit:
        visit.open(f"compare?prompt={prompt}&reference=true")
        words = shown(visit)
        # in the prompt, in both responses, and in what the judge said in both orders
        for wanted in TEXTS[kind][1]:
            assert words.count(wanted) >= 5, words[:2000]
        is_harmless(visit)
        visit.open(f"datasets?row={prompt}&reviewer=ada")
        for wanted in TEXTS[kind][1]:
            assert shown(visit).count(wanted) >= 3
        is_harmless(visit)


@pytest.mark.parametrize("page", ["results", "board", "curves", "compare?mode=all with all", "datasets", "provenance"])
def test_names_are_text_on_every_page(tabs, address, page):
    with visiting(tabs, address) as visit:
        visit.open(page)
        is_harmless(visit)
        assert visit.page.locator("[data-testid=stMain] :is(b, i, em):text-is('b')").count() == 0


def test_the_exported_pages_hold_them_as_text(chromium, hostile, tmp_path):
    run_cdpo("view", "--store", hostile, "--export", tmp_path / "html", cwd=tmp_path)
    with visiting(chromium.new_context(offline=True), (tmp_path / "html").as_uri()) as visit:
        for file in ("index.html", "compare.html"):
            visit.page.goto(f"{visit.address}/{file}")
            visit.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert not visit.wide()
            assert visit.page.locator("script, iframe, svg, [onerror], [onload], [onmouseover]").count() == 0
            assert visit.page.locator("img:not([src^='data:']), a[href*=':']").count() == 0
        words = visit.page.locator("body").inner_text()
        for wanted in [each for _, several in TEXTS.values() for each in several]:
            assert wanted.strip() in words
