"""Steps as a graph that stands in a page: boxes that are links, and lines from what a step needs to it.

Boxes are HTML and lines a picture beneath them: st.html keeps no other SVG, and so the boxes have the theme's colours.
"""

import math
import textwrap
from collections.abc import Collection, Sequence
from urllib.parse import quote, urlencode

from cdpo.report.provenance import Node
from cdpo.viewer import board_grid, look

#: pixels
WIDTH, GAP, BETWEEN, HEAD, LINE, EDGE = 236, 22, 36, 42, 14, 8
#: characters of a name on one line of a box
LETTERS = 36
#: colours of lines that stand out of light and of dark
PLAIN, STRONG = "#8a8f98", "#3b82d6"


def drawn(nodes: Sequence[Node], query: Sequence[tuple[str, str]], chosen: str, chain: Collection[str]) -> str:
    """`nodes`, parents before children, as HTML. `chosen` is marked; those of `chain` stand out, where there is one.

    A box opens this page with `query` and its own step.
    """
    places, width = _places(nodes)
    lines = {node.key: _wrapped(node.name) for node in nodes}
    heights: dict[int, int] = {}
    for key, (row, _) in places.items():
        heights[row] = max(heights.get(row, 0), HEAD + LINE * len(lines[key]))
    tops = {row: EDGE + sum(heights[above] + BETWEEN for above in range(row)) for row in heights}
    tall = EDGE + sum(heights.values()) + BETWEEN * (len(heights) - 1) + EDGE

    def corner(key: str) -> tuple[float, float]:
        row, left = places[key]
        return EDGE + left, tops[row]

    def height(key: str) -> int:
        return heights[places[key][0]]

    paths = []
    for node in nodes:
        for parent in dict.fromkeys(node.parents.values()):
            strong = bool(chain) and node.key in chain and parent in chain
            paths.append((strong, _path(corner(parent), corner(node.key), height(parent))))
    svg = "".join(_stroke(path, strong, bool(chain)) for strong, path in sorted(paths))
    size = f'width="{width + 2 * EDGE:.0f}" height="{tall:.0f}"'
    picture = quote(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{svg}</svg>')
    boxes = "".join(
        _box(node, corner(node.key), height(node.key), lines[node.key], query, chosen, chain) for node in nodes
    )
    return (
        f'<div class="cdpo-wide"><div class="cdpo-graph" style="width:{width + 2 * EDGE:.0f}px;height:{tall:.0f}px">'
        f'<img alt="" src="data:image/svg+xml,{picture}">{boxes}</div></div>'
    )


def _places(nodes: Sequence[Node]) -> tuple[dict[str, tuple[int, float]], float]:
    """key -> its row (below all its parents) and the left end of its box; and how wide all is."""
    there = {node.key for node in nodes}
    row: dict[str, int] = {}
    for node in nodes:
        row[node.key] = 1 + max((row[parent] for parent in node.parents.values() if parent in there), default=-1)
    rows: dict[int, list[Node]] = {}
    for node in nodes:
        rows.setdefault(row[node.key], []).append(node)
    width = max(len(each) for each in rows.values()) * (WIDTH + GAP) - GAP if rows else WIDTH
    found: dict[str, tuple[int, float]] = {}
    for at in sorted(rows):
        members = rows[at]

        def middle(node: Node) -> float:
            above = [found[parent][1] for parent in node.parents.values() if parent in found]
            return sum(above) / len(above) if above else math.inf

        # under what it needs, so that few lines cross
        members = sorted(members, key=middle)
        free = width - (len(members) * (WIDTH + GAP) - GAP)
        for place, node in enumerate(members):
            found[node.key] = (at, free / 2 + place * (WIDTH + GAP))
    return found, width


def _wrapped(name: str) -> list[str]:
    """A name in lines: cut behind `_` where that can be, and nothing is left out."""
    words = textwrap.wrap(name.replace("_", "_\u200b ").strip(), LETTERS + 2, break_on_hyphens=False) or [""]
    return [line.replace("\u200b ", "").replace("\u200b", "") for line in words]


def _path(parent: tuple[float, float], child: tuple[float, float], height: float) -> str:
    x, y = parent[0] + WIDTH / 2, parent[1] + height
    to_x, to_y = child[0] + WIDTH / 2, child[1]
    bend = max(BETWEEN * 0.6, (to_y - y) / 2)
    return f"M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"


def _stroke(path: str, strong: bool, any_strong: bool) -> str:
    colour, width = (STRONG, 2.2) if strong else (PLAIN, 1.2)
    faded = 0.35 if any_strong and not strong else 0.9
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{faded}"/>'


def _box(
    node: Node,
    corner: tuple[float, float],
    height: float,
    lines: Sequence[str],
    query: Sequence[tuple[str, str]],
    chosen: str,
    chain: Collection[str],
) -> str:
    css = ["cdpo-step", node.state]
    css += ["chosen"] if node.key == chosen else []
    css += ["faded"] if chain and node.key not in chain else []
    where = look.as_text(urlencode([*query, ("step", board_grid.step_name(node.pipeline, node.key))]))
    style = f"left:{corner[0]:.0f}px;top:{corner[1]:.0f}px;width:{WIDTH}px;height:{height:.0f}px"
    mark = f'<span class="cdpo-mark {node.state}">{board_grid.MARKS[node.state]}</span>'
    name = "<br>".join(look.as_text(line) for line in lines)
    title = look.as_text(f"{node.label}: {board_grid.MEANINGS[node.state]}")
    return (
        f'<a class="{" ".join(css)}" href="provenance?{where}" style="{style}" title="{title}">'
        f"<b>{look.as_text(node.pipeline)}</b>{mark}<small>{name}</small></a>"
    )
