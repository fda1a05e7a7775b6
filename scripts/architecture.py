"""Measures the code by its imports and definitions, and draws its rooms as floors.

Reads a checkout as text: files -> modules (what each imports, names, says) -> rooms -> figures and
a picture. Nothing of it is imported, so any state of the tree can be measured, and two compared:

    python scripts/architecture.py [--root DIR] [--against DIR] [--svg FILE]
    python scripts/architecture.py [--root DIR] --docstrings --names

A *room* is a folder with Python files. A file that stands in a package's root, or in a folder that
has folders with Python files below it, is a room of its own: nothing groups it with its neighbours.
An *arrow* leads from the room that imports to the room that is imported. Imports inside functions
and under TYPE_CHECKING count as much as others. *Floors* are the rooms on the longest chain of
arrows, a circle of rooms counted as one.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

PACKAGES = ("pipeline", "engines", "learner", "launch", "darts")
# First words that leave a sentence without a subject: prepositions, conjunctions, question words.
NO_SUBJECT = frozenset(
    re.findall(
        r"\w+",
        """
        about above according across after against ahead along amid among and around as at
        because before behind below beneath beside besides between beyond but by despite
        down during except for from how if in inside instead into like near nor of off on
        once onto or out outside over past per rather regarding since so than though through
        throughout till to together toward towards under underneath unless unlike until up
        upon versus via what whatever when whenever where wherever whether which whichever
        while who whoever whom whomever whose why with within without
        """,
    )
)

CIRCLE = " ⇄ "  # joins the names of what imports each other
Graph = Mapping[str, Iterable[str]]


# --- reading --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Module:
    """One file, as far as the figures ask for it."""

    path: str  # from the root of the checkout, "pipeline/stage/outbox.py"
    imports: frozenset[str]  # dotted names; `from a import b` gives a.b
    functions: tuple[str, ...]  # public ones at the level of module or class
    docstrings: tuple[tuple[int, str], ...]  # line, first line of the text
    lines: int
    code_lines: int  # neither blank, nor comment, nor docstring
    is_nameplate: bool  # an `__init__.py` that holds a docstring at most


def read_module(root: Path, path: Path) -> Module:
    """Parse one file; a syntax error is raised as Python says it."""
    name = path.relative_to(root).as_posix()
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, name)
    found = sorted(filter(None, map(_docstring, ast.walk(tree))), key=lambda node: node.lineno)
    said = {line for node in found for line in range(*_lines(node))}
    code = [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if number not in said and line.strip() and not line.lstrip().startswith("#")
    ]
    rest = [node for node in tree.body if not _is_future(node)]
    return Module(
        path=name,
        imports=frozenset(imported_names(tree, package_of(name))),
        functions=tuple(public_functions(tree.body)),
        docstrings=tuple((node.lineno, _first_line(node)) for node in found),
        lines=len(text.splitlines()),
        code_lines=len(code),
        is_nameplate=path.name == "__init__.py" and len(rest) == bool(ast.get_docstring(tree)),
    )


def _docstring(node: ast.AST) -> ast.Constant | None:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            return first.value if isinstance(first.value.value, str) else None
    return None


def _lines(node: ast.Constant) -> tuple[int, int]:
    return node.lineno, (node.end_lineno or node.lineno) + 1


def _first_line(node: ast.Constant) -> str:
    return next((line.strip() for line in str(node.value).splitlines() if line.strip()), "")


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def package_of(path: str) -> str:
    """The dotted package that a file's relative imports start from."""
    return path.rpartition("/")[0].replace("/", ".")


def imported_names(tree: ast.Module, package: str) -> Iterator[str]:
    """Dotted names of all imports at any depth; relative ones are made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(start if node.level else ()), *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def public_functions(body: Iterable[ast.AST]) -> Iterator[str]:
    """Names without a leading underscore of functions at the level of module or class."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_"):
                yield node.name
        else:  # classes, and whatever branches may hold them: `if TYPE_CHECKING`, `try`
            yield from public_functions(ast.iter_child_nodes(node))


def read_package(root: Path, package: str) -> list[Module]:
    return [read_module(root, path) for path in sorted((root / package).rglob("*.py"))]


def read_house(root: Path) -> list[Module]:
    return [module for package in PACKAGES for module in read_package(root, package)]


# --- graphs ---------------------------------------------------------------------------------


def file_graph(modules: Iterable[Module]) -> dict[str, set[str]]:
    """Files -> the files that they import; what is not among `modules` is left out."""
    known = {_dotted(module.path): module.path for module in modules}
    graph: dict[str, set[str]] = {path: set() for path in known.values()}
    for module in modules:
        for name in module.imports:
            # `a.b.c` is file c of a.b, or a name in a/b.py or a/b/__init__.py.
            parts = name.split(".")
            tries = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
            target = next((known[name] for name in tries if name in known), "")
            if target and target != module.path:
                graph[module.path].add(target)
    return graph


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def rooms_of(modules: Iterable[Module]) -> dict[str, str]:
    """Files -> rooms; an `__init__.py` that only names a folder of folders is in none."""
    modules = list(modules)
    folders = {_folder(module.path) for module in modules}
    halls = {_folder(folder) for folder in folders} | {f for f in folders if "/" not in f}
    rooms: dict[str, str] = {}
    for module in modules:
        folder = _folder(module.path)
        if folder not in halls:
            rooms[module.path] = folder
        elif not module.is_nameplate:
            rooms[module.path] = module.path
    return rooms


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def folded(graph: Graph, rooms: Mapping[str, str]) -> dict[str, set[str]]:
    """The graph of files as one of rooms."""
    arrows: dict[str, set[str]] = {room: set() for room in rooms.values()}
    for path, targets in graph.items():
        if path in rooms:
            arrows[rooms[path]] |= {rooms[to] for to in targets if to in rooms} - {rooms[path]}
    return arrows


def components(graph: Graph) -> list[tuple[str, ...]]:
    """Strongly connected components, each sorted, what is imported first (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for to in sorted(graph[node]):
            if to not in index:
                visit(to)
                low[node] = min(low[node], low[to])
            elif to in stack:
                low[node] = min(low[node], index[to])
        if low[node] == index[node]:
            at = stack.index(node)
            found.append(tuple(sorted(stack[at:])))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def floors_of(graph: Graph) -> dict[str, int]:
    """Node -> its floor: 0 where nothing is imported, else one above the highest imported."""
    floor: dict[str, int] = {}
    for members in components(graph):
        below = {to for node in members for to in graph[node]} - set(members)
        height = max((floor[to] + 1 for to in below), default=0)
        floor |= dict.fromkeys(members, height)
    return floor


def circles_of(graph: Graph) -> list[tuple[str, ...]]:
    return [members for members in components(graph) if len(members) > 1]


def without_implied(graph: Graph) -> dict[str, set[str]]:
    """The graph without arrows that a longer way implies (transitive reduction).

    The graph has no circles.
    """
    reached: dict[str, set[str]] = {}
    for [node] in components(graph):
        reached[node] = {*graph[node]}.union(*(reached[to] for to in graph[node]))
    return {
        node: {to for to in targets if not any(to in reached[other] for other in targets)}
        for node, targets in graph.items()
    }


# --- figures --------------------------------------------------------------------------------


def figures_of(modules: Sequence[Module], test_lines: int) -> dict[str, str]:
    """Figures of one package, or of all together, as they stand in the table."""
    files, rooms = file_graph(modules), rooms_of(modules)
    arrows = folded(files, rooms)
    sizes = Counter(rooms.values())
    names = {name for module in modules for name in module.functions}
    texts = [text for module in modules for _, text in module.docstrings]
    return {
        "files": str(len(modules)),
        "rooms": str(len(arrows)),
        "largest room, files": str(max(sizes.values(), default=0)),
        "arrows between rooms": str(sum(map(len, arrows.values()))),
        "floors": str(max(floors_of(arrows).values(), default=-1) + 1),
        "circles of rooms": str(len(circles_of(arrows))),
        "circles of files": str(len(circles_of(files))),
        "lines": str(sum(module.lines for module in modules)),
        "lines of code": str(sum(module.code_lines for module in modules)),
        "lines of tests": str(test_lines),
        "function names of one word": _share(map(is_one_word, names)),
        "docstrings without a subject": _share(map(lacks_subject, texts)),
    }


def is_one_word(name: str) -> bool:
    return "_" not in name


def lacks_subject(text: str) -> bool:
    """Tell whether the first word is one of NO_SUBJECT; `code` and "on-policy" are none."""
    first = re.match(r"[\w'-]+", text)
    return first is not None and first[0].lower() in NO_SUBJECT


def _share(found: Iterable[bool]) -> str:
    each = list(found)
    return f"{100 * sum(each) / len(each):.0f} %" if each else "none"


def measure_house(root: Path) -> dict[str, dict[str, str]]:
    """Figures by package, those of the whole house last."""
    house: list[Module] = []
    figures: dict[str, dict[str, str]] = {}
    for package in PACKAGES:
        if modules := read_package(root, package):
            house += modules
            figures[package] = figures_of(modules, count_lines(root / "tests" / package))
    return figures | {"house": figures_of(house, count_lines(root / "tests"))}


def count_lines(folder: Path) -> int:
    return sum(len(p.read_text(encoding="utf-8").splitlines()) for p in folder.rglob("*.py"))


def markdown_table(after: dict[str, dict[str, str]], before: dict[str, dict[str, str]]) -> str:
    """The figures in Markdown; with `before`, each cell says "before → after"."""
    columns = [name for name in (*PACKAGES, "house") if name in after or name in before]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for row in after["house"]:
        cells = [
            " → ".join(tree.get(name, {}).get(row, "–") for tree in (before, after) if tree)
            for name in columns
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def circle_lines(root: Path) -> Iterator[str]:
    """One line for each circle of rooms and of files."""
    modules = read_house(root)
    files = file_graph(modules)
    for kind, graph in (("rooms", folded(files, rooms_of(modules))), ("files", files)):
        for members in circles_of(graph):
            yield f"circle of {kind}: {', '.join(members)}"


def docstring_lines(root: Path) -> Iterator[str]:
    """`file:line: first line` of each docstring without a subject."""
    for module in read_house(root):
        for line, text in module.docstrings:
            if lacks_subject(text):
                yield f"{module.path}:{line}: {text}"


def name_lines(root: Path) -> Iterator[str]:
    """One-word names of public functions that stand in two files or more, the most common first."""
    files: defaultdict[str, set[str]] = defaultdict(set)
    for module in read_house(root):
        for name in filter(is_one_word, module.functions):
            files[name].add(module.path)
    for name, paths in sorted(files.items(), key=lambda item: (-len(item[1]), item[0])):
        if len(paths) > 1:
            yield f"{name}: {len(paths)} files: {', '.join(sorted(paths))}"


# --- picture --------------------------------------------------------------------------------

WIDTH = 1000
MARGIN = 12  # around the picture, and inside a frame
TITLE = 26  # height of a frame's heading
BOX, FLOOR = 34, 66  # height of a box; from one floor to the next
GAP, WIDEST_GAP = 8, 44  # between two boxes of a floor
BETWEEN = 34  # between two rows of frames
COLOURS = {  # package: (light, dark); apart for people who do not tell red from green
    "pipeline": ("#e69f00", "#f0b840"),
    "engines": ("#0072b2", "#5fb4e6"),
    "learner": ("#009e73", "#3fc79c"),
    "launch": ("#b5548f", "#dd8fbf"),
    "darts": ("#767676", "#a8a8a8"),
}


@dataclass
class Frame:
    """One package in the picture: its boxes on their floors, and where the frame lies."""

    package: str
    count: int  # files of the package
    files: dict[str, list[str]]  # box -> its files
    rows: list[list[str]]  # boxes and bends from the lowest floor up, left to right
    links: set[tuple[str, str]]  # (upper, lower) of neighbouring floors
    left: float = 0.0
    top: float = 0.0
    width: float = 0.0
    height: float = 0.0

    @property
    def least_height(self) -> float:
        return TITLE + FLOOR * len(self.rows) - (FLOOR - BOX) + MARGIN

    @property
    def least_width(self) -> float:
        return max(self.row_width(row, GAP) for row in self.rows) + 2 * MARGIN

    def row_width(self, row: Sequence[str], gap: float) -> float:
        return sum(map(self.width_of, row)) + gap * (len(row) - 1)

    @property
    def gap(self) -> float:
        """Between two boxes: wider where the frame is wider than its fullest floor."""
        spare = [
            (self.width - 2 * MARGIN - self.row_width(row, 0)) / (len(row) + 1) for row in self.rows
        ]
        return min(WIDEST_GAP, max(GAP, min(spare)))

    def width_of(self, node: str) -> float:
        """The width of a box, or of an arrow that passes between boxes."""
        if node not in self.files:
            return 4.0
        first, second = self.text_of(node)
        bold = 7.5 if not self.is_file(node) else 7.0
        return max(52.0 if self.is_file(node) else 84.0, bold * len(first), 6.0 * len(second)) + 14

    def is_file(self, box: str) -> bool:
        return self.files[box] == [box]

    def text_of(self, box: str) -> tuple[str, str]:
        """The two lines of a box: name and size of a folder; of a file its name, halved if long."""
        name = CIRCLE.join(part.partition("/")[2] for part in box.split(CIRCLE))
        if self.is_file(box):
            cuts = [at + 1 for at, letter in enumerate(name) if letter == "_"]
            cut = min(cuts, key=lambda at: abs(at - len(name) / 2), default=0)
            return (name[:cut], name[cut:]) if cut and len(name) > 9 else (name, "")
        paths = self.files[box]
        below = len({_folder(path) for path in paths} - {box})
        inner = f", {below} sub-folder{'s' if below > 1 else ''}" if below else ""
        return name, f"{len(paths)} files{inner}"


def box_of(path: str) -> str:
    """The box that a file is drawn in: folders directly below a package are not taken apart."""
    return "/".join(path.split("/")[:2])


def frame_of(package: str, count: int, graph: Graph, boxes: Mapping[str, str]) -> Frame:
    """Put a package's boxes on floors, and order each floor so that few arrows cross."""
    inside = {box for box in graph if box.startswith(f"{package}/")}
    arrows = without_implied({box: {*graph[box]} & inside for box in inside})
    floor = floors_of(arrows)
    rows: list[list[str]] = [[] for _ in range(max(floor.values(), default=0) + 1)]
    for box in sorted(inside):
        rows[floor[box]].append(box)
    links: set[tuple[str, str]] = set()
    for box in sorted(arrows):
        for to in sorted(arrows[box]):
            # All long arrows to one box share their bends, so they arrive as one line.
            bends = [f"{to}@{level}" for level in range(floor[box] - 1, floor[to], -1)]
            links |= set(pairwise([box, *bends, to]))
            for bend in bends:
                if bend not in rows[(level := int(bend.rpartition("@")[2]))]:
                    rows[level].append(bend)
    files: dict[str, list[str]] = {box: [] for box in sorted(inside)}
    for path, box in sorted(boxes.items()):
        if box in inside:
            files[box].append(path)
    return Frame(package, count, files, order_rows(rows, links), links)


def order_rows(rows: list[list[str]], links: set[tuple[str, str]]) -> list[list[str]]:
    """Order each row by the mean place of its neighbours, then by swaps, while crossings vanish."""
    beside: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
    for upper, lower in sorted(links):
        beside[-1, upper].append(lower)
        beside[+1, lower].append(upper)
    rows = [[*row] for row in rows]
    best, fewest = rows, crossings(rows, links)
    for sweep in range(24):
        side = -1 if sweep % 2 == 0 else +1  # neighbours below, while going up; then above
        indices = range(1, len(rows)) if side < 0 else range(len(rows) - 2, -1, -1)
        for index in indices:
            place = {node: at for at, node in enumerate(rows[index + side])}
            here = {node: at for at, node in enumerate(rows[index])}
            weight = {
                node: fmean([place[other] for other in beside[side, node]] or [here[node]])
                for node in rows[index]
            }
            rows[index].sort(key=lambda node: (weight[node], here[node]))
        swap_neighbours(rows, links)
        if (count := crossings(rows, links)) < fewest:
            best, fewest = [[*row] for row in rows], count
    return best


def swap_neighbours(rows: list[list[str]], links: set[tuple[str, str]]) -> None:
    """Swap neighbours in place as long as one swap leaves fewer crossings."""
    fewest = crossings(rows, links)
    improved = True
    while improved:
        improved = False
        for row in rows:
            for at in range(len(row) - 1):
                row[at], row[at + 1] = row[at + 1], row[at]
                if (count := crossings(rows, links)) < fewest:
                    fewest, improved = count, True
                else:
                    row[at], row[at + 1] = row[at + 1], row[at]


def crossings(rows: list[list[str]], links: set[tuple[str, str]]) -> int:
    """The number of pairs of links between two floors that cross."""
    place = {node: (index, at) for index, row in enumerate(rows) for at, node in enumerate(row)}
    by_floor: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for upper, lower in links:
        by_floor[place[lower][0]].append((place[upper][1], place[lower][1]))
    return sum(
        (a[0] - b[0]) * (a[1] - b[1]) < 0
        for ends in by_floor.values()
        for at, a in enumerate(ends)
        for b in ends[:at]
    )


def centres_of(frame: Frame) -> dict[str, float]:
    """The horizontal centre of every box and bend, near its neighbours and inside the frame."""
    beside: defaultdict[str, list[str]] = defaultdict(list)
    for upper, lower in sorted(frame.links):
        beside[upper].append(lower)
        beside[lower].append(upper)
    middle = frame.left + frame.width / 2
    centre: dict[str, float] = {}
    for row in frame.rows:
        centre |= spread_row(frame, row, [middle] * len(row))
    for _ in range(40):
        for row in (*frame.rows, *frame.rows[::-1]):
            wish = [fmean([centre[other] for other in beside[n]] or [middle]) for n in row]
            centre |= spread_row(frame, row, wish)
    left = min(centre[node] - frame.width_of(node) / 2 for node in centre)
    right = max(centre[node] + frame.width_of(node) / 2 for node in centre)
    return {node: at + middle - (left + right) / 2 for node, at in centre.items()}


def spread_row(frame: Frame, row: Sequence[str], wish: Sequence[float]) -> dict[str, float]:
    """Centres as near to `wish` as they can be in this order without overlap (least squares)."""
    widths = [frame.width_of(node) for node in row]
    offset = [frame.row_width(row[: at + 1], frame.gap) - widths[at] / 2 for at in range(len(row))]
    blocks: list[tuple[float, int]] = []  # mean left end, members
    for at in range(len(row)):
        value, count = wish[at] - offset[at], 1
        while blocks and blocks[-1][0] > value:
            before, many = blocks.pop()
            value = (value * count + before * many) / (count + many)
            count += many
        blocks.append((value, count))
    low = frame.left + MARGIN
    latest = low + frame.width - 2 * MARGIN - frame.row_width(row, frame.gap)
    starts = [min(max(value, low), latest) for value, count in blocks for _ in range(count)]
    return {node: start + off for node, start, off in zip(row, starts, offset, strict=True)}


def frames_of(modules: Sequence[Module]) -> tuple[list[Frame], dict[str, set[str]], Graph]:
    """Frames in their places, the arrows between packages, and those between boxes."""
    files = file_graph(modules)
    # A package's own docstring is no box.
    path_boxes = {
        m.path: box_of(m.path) for m in modules if not (m.is_nameplate and m.path.count("/") == 1)
    }
    plain = folded(files, path_boxes)
    merged = {box: CIRCLE.join(members) for members in components(plain) for box in members}
    boxes = {path: merged[box] for path, box in path_boxes.items()}
    graph = folded(files, boxes)
    packages = folded(graph, {box: box.split("/")[0] for box in graph})
    storey = floors_of(packages)
    counts = Counter(module.path.split("/")[0] for module in modules)
    rows: list[list[Frame]] = [[] for _ in {*storey.values()}]  # the highest storey first
    for name in filter(storey.__contains__, PACKAGES):
        rows[-1 - storey[name]].append(frame_of(name, counts[name], graph, boxes))
    least = [sum(frame.least_width + MARGIN for frame in row) + MARGIN for row in rows]
    top = float(MARGIN)
    for row, needed in zip(rows, least, strict=True):
        left = float(MARGIN)
        for frame in row:
            frame.left, frame.top = left, top
            frame.width = frame.least_width + (max(WIDTH, *least) - needed) / len(row)
            frame.height = max(other.least_height for other in row)
            left += frame.width + MARGIN
        top += row[0].height + BETWEEN
    return [frame for row in rows for frame in row], packages, graph


def draw_house(root: Path) -> str:
    """The rooms of a checkout on their floors, as SVG; the same tree gives the same text."""
    frames, packages, graph = frames_of(read_house(root))
    width = max(frame.left + frame.width for frame in frames) + MARGIN
    height = max(frame.top + frame.height for frame in frames) + 44
    title = "The rooms on their floors; arrows lead to what is imported"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"',
        f' font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="{title}">',
        f"<title>{title}</title>",
        *style_lines(),
        f'<rect class="sheet" width="{width:.0f}" height="{height:.0f}" rx="10"/>',
    ]
    for frame in frames:
        lines += frame_lines(frame)
    lines += broad_arrows(frames, packages)
    visitors = visitors_of(graph)
    for frame in frames:
        lines += room_lines(frame, visitors)
    seen = {name for names in visitors.values() for name in names}
    lines += legend_lines([name for name in PACKAGES if name in seen], height - 18)
    return "\n".join([*lines, "</svg>"]) + "\n"


def style_lines() -> Iterator[str]:
    """Colours for light and dark; the sheet is opaque, since a page may differ from the system."""
    sheets = (("#ffffff", "#222222", "#8a8a8a"), ("#1b1d20", "#e6e6e6", "#8f8f8f"))
    yield "<style>"
    for dark, (sheet, ink, line) in enumerate(sheets):
        rules = [
            f"svg{{color:{ink}}}.sheet{{fill:{sheet}}}",
            f".link{{stroke:{line}}}.tip,.broad{{fill:{line}}}.box{{fill:{sheet}}}",
            *(
                f".{name}{{fill:{tones[dark]};stroke:{tones[dark]}}}"
                for name, tones in COLOURS.items()
            ),
        ]
        yield f"@media (prefers-color-scheme:dark){{{''.join(rules)}}}" if dark else "".join(rules)
    yield (
        "text{fill:currentColor}text,tspan{stroke:none}.link{fill:none;stroke-width:1.2}"
        ".frame{fill-opacity:.1}.tint{fill-opacity:.26;stroke-width:1.2}.one{fill-opacity:.08}.small{font-size:10px}"
    )
    yield "</style>"
    yield (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" '
        'markerHeight="6" orient="auto"><path class="tip" d="M0 1 10 5 0 9z"/></marker></defs>'
    )


def frame_lines(frame: Frame) -> Iterator[str]:
    yield (
        f'<rect class="frame {frame.package}" x="{frame.left:.1f}" y="{frame.top:.1f}" '
        f'width="{frame.width:.1f}" height="{frame.height:.1f}" rx="8"/>'
    )
    yield (
        f'<text x="{frame.left + MARGIN:.1f}" y="{frame.top + 19:.1f}" font-size="15" '
        f'font-weight="700">{frame.package}<tspan class="small" font-weight="400" dx="8">'
        f"{frame.count} files</tspan></text>"
    )


def room_lines(frame: Frame, visitors: Mapping[str, list[str]]) -> Iterator[str]:
    """The arrows of a frame, then its boxes."""
    centre = centres_of(frame)
    ground = frame.top + frame.height - MARGIN - BOX
    level = {node: index for index, row in enumerate(frame.rows) for node in row}
    leaves, arrives = link_ends(frame, centre)
    for upper, lower in sorted(frame.links):
        x1, y1 = leaves[upper, lower], ground - FLOOR * level[upper] + BOX
        x2, y2 = arrives[upper, lower], ground - FLOOR * level[lower]
        end = '" marker-end="url(#tip)' if lower in frame.files else f"V{y2 + BOX:.1f}"
        middle = (y1 + y2) / 2
        yield (
            f'<path class="link" d="M{x1:.1f} {y1:.1f}C{x1:.1f} {middle:.1f} {x2:.1f} '
            f'{middle:.1f} {x2:.1f} {y2:.1f}{end}"/>'
        )
    for box in frame.files:
        x, y = centre[box], ground - FLOOR * level[box]
        yield from box_lines(frame, box, (x, y))
        for at, package in enumerate(visitors.get(box, ())):
            right = x + frame.width_of(box) / 2 - 8 - 9 * at
            yield f'<circle class="{package}" cx="{right:.1f}" cy="{y:.1f}" r="3.5"/>'


def box_lines(frame: Frame, box: str, at: tuple[float, float]) -> Iterator[str]:
    (x, y), width = at, frame.width_of(box)
    first, second = frame.text_of(box)
    pale, bold, small = (" one", 400, "") if frame.is_file(box) else ("", 600, ' class="small"')
    place = f'x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BOX}" rx="5"'
    yield f'<rect class="box" {place}/>'
    yield f'<rect class="tint {frame.package}{pale}" {place}/>'
    start = y + (15 if second else 21)
    yield (
        f'<text x="{x:.1f}" y="{start:.1f}" text-anchor="middle" font-weight="{bold}">{first}'
        f'<tspan{small} font-weight="400" x="{x:.1f}" dy="13">{second}</tspan></text>'
    )


def link_ends(
    frame: Frame, centre: Mapping[str, float]
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
    """The points where links leave their upper and meet their lower box, side by side."""
    ends: list[dict[tuple[str, str], float]] = []
    for near, far in ((0, 1), (1, 0)):
        found: dict[tuple[str, str], float] = {}
        for node in centre:
            links = [link for link in frame.links if link[near] == node]
            links.sort(key=lambda link: (centre[link[far]], link))
            step = min(12.0, (frame.width_of(node) - 24) / max(1, len(links)))
            for at, link in enumerate(links):
                bend = node not in frame.files  # all that pass here are one line
                found[link] = centre[node] + (0 if bend else step * (at - (len(links) - 1) / 2))
        ends.append(found)
    return ends[0], ends[1]


def visitors_of(graph: Graph) -> dict[str, list[str]]:
    """Box -> the other packages that import it, in the order of PACKAGES."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for box, targets in graph.items():
        for to in targets:
            found[to].add(box.split("/")[0])
    return {
        box: [name for name in PACKAGES if name in names and name != box.split("/")[0]]
        for box, names in found.items()
    }


def broad_arrows(frames: list[Frame], packages: Graph) -> Iterator[str]:
    """One broad arrow for each package that another imports, but for implied ones."""
    if circles_of(packages):
        return
    by_name = {frame.package: frame for frame in frames}
    for name, targets in sorted(without_implied(packages).items()):
        for to in sorted(targets):
            upper, lower = by_name[name], by_name[to]
            left = max(upper.left, lower.left)
            right = min(upper.left + upper.width, lower.left + lower.width)
            x, y1, y2 = (left + right) / 2, upper.top + upper.height + 3, lower.top - 3
            yield (
                f'<path class="broad" d="M{x - 5:.1f} {y1:.1f}h10V{y2 - 12:.1f}h8L{x:.1f} '
                f'{y2:.1f}L{x - 13:.1f} {y2 - 12:.1f}h8z"/>'
            )


def legend_lines(visitors: Iterable[str], y: float) -> Iterator[str]:
    """Explain the signs; `visitors` are the packages that have a dot somewhere."""
    dots = " ".join(f'<tspan class="{name}">●</tspan> {name}' for name in visitors)
    yield (
        f'<text x="{MARGIN}" y="{y:.1f}">An arrow leads to what is imported, unless other arrows '
        f"imply it. Pale: a single file. Dots: also imported by {dots}</text>"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print or draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=root, help="the checkout to measure")
    parser.add_argument("--against", type=Path, help="a checkout to compare with: before → after")
    parser.add_argument("--docstrings", action="store_true", help="list those without a subject")
    parser.add_argument("--names", action="store_true", help="list one-word names of several files")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the rooms into this file")
    chosen = parser.parse_args(arguments)
    for tree in filter(None, (chosen.root, chosen.against)):
        if not any((tree / package).is_dir() for package in PACKAGES):
            parser.error(f"{tree} has no folder of these: {', '.join(PACKAGES)}")
    if chosen.docstrings or chosen.names:
        lists = (docstring_lines, chosen.docstrings), (name_lines, chosen.names)
        for lines in (found(chosen.root) for found, wanted in lists if wanted):
            print(*lines, sep="\n")
        return
    if chosen.svg:
        chosen.svg.write_text(draw_house(chosen.root), encoding="utf-8")
    print(
        markdown_table(
            measure_house(chosen.root), measure_house(chosen.against) if chosen.against else {}
        )
    )
    for tree in filter(None, (chosen.against, chosen.root)):
        for line in circle_lines(tree):
            print(f"\n{tree}: {line}" if chosen.against else f"\n{line}")


if __name__ == "__main__":
    main()
