"""A report as blocks, and its two forms: one self-contained HTML page, and Markdown.

Every string in a block is plain text; escaping is done here, once for each form.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

__all__ = [
    "Block",
    "Facts",
    "Heading",
    "Image",
    "Picture",
    "Table",
    "TableRow",
    "Text",
    "Verdict",
    "to_html",
    "to_markdown",
]

Cell = str | tuple[str, str]  # what stands in it, and a smaller second line


@dataclass(frozen=True)
class Heading:
    """A heading of level 2 or 3; `id` is what links lead to."""

    text: str
    id: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """Paragraphs, or the items of a list."""

    lines: Sequence[str]
    as_list: bool = False
    warning: bool = False


@dataclass(frozen=True)
class Verdict:
    """The answer in one line, paragraphs, a list, and paragraphs again."""

    headline: str
    before: Sequence[str] = ()
    items: Sequence[str] = ()
    after: Sequence[str] = ()


@dataclass(frozen=True)
class TableRow:
    """What the row is about, with a colour where the figures have one for it, and its cells."""

    header: str
    cells: Sequence[Cell]
    colour: str | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[TableRow]


@dataclass(frozen=True)
class Facts:
    """Names and what they stand for."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Image:
    """A picture's file name beside the report, its bytes, what it shows in words, and a line below it."""

    file: str
    content: bytes
    alt: str
    label: str = ""

    @property
    def mime(self) -> str:
        """Its type, for a data URL."""
        return "image/svg+xml" if self.file.endswith(".svg") else "image/jpeg"


@dataclass(frozen=True)
class Picture:
    """One or several images with a common caption; several stand side by side where there is room."""

    images: Sequence[Image]
    caption: str
    small: bool = False


_LONG_NAME, _LONG_CELL = 14, 24  # characters; longer ones may wrap

Block = Heading | Text | Verdict | Table | Facts | Picture

# ---------------------------------------------------------------------------------------------------------------- HTML

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
</main>
</body>
</html>
""")

_STYLE = """
:root { color-scheme: light; --ink: #222; --soft: #565656; --line: #d9d9d9; --accent: #1f5f99; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 0.5rem; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 0.25rem; }
p, ul { max-width: 44rem; margin: 0.5rem 0; }
ul { padding-left: 1.25rem; }
code { font: inherit; white-space: nowrap; }
a { color: var(--accent); }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0.25rem 1.1rem; max-width: none; }
.verdict { border-left: 0.35rem solid var(--accent); background: #f3f7fb; padding: 0.9rem 1.1rem; margin: 1rem 0; }
.verdict p { margin: 0.4rem 0 0; }
.verdict ul { margin: 0.3rem 0 0; }
.verdict .headline { font-size: 1.3rem; line-height: 1.35; font-weight: 650; margin: 0; }
.warning { border-left: 0.35rem solid #b26a00; background: #fff7e8; padding: 0.6rem 1.1rem; margin: 1rem 0; }
/* A shadow stands at an edge beyond which the table goes on; the white ends that scroll with the table cover it. */
.scroll { overflow-x: auto; margin: 0.75rem 0 1.5rem; background:
  linear-gradient(to right, #fff 50%, transparent) left / 4rem 100% no-repeat local,
  linear-gradient(to left, #fff 50%, transparent) right / 4rem 100% no-repeat local,
  linear-gradient(to right, rgb(0 0 0 / 0.22), transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, rgb(0 0 0 / 0.22), transparent) right / 1rem 100% no-repeat scroll; }
.scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.95rem; }
.caption { color: var(--soft); margin: 1.25rem 0 0.4rem; }
.caption + .scroll { margin-top: 0; }
th, td { padding: 0.4rem 1.1rem 0.4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; border-bottom: 2px solid #888; font-weight: 600; line-height: 1.25; }
tbody th { font-weight: 600; min-width: 6.5rem; max-width: 22rem; }
td, tbody th { white-space: nowrap; }
tbody th.long { white-space: normal; overflow-wrap: break-word; min-width: 8rem; }
td.long { white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }
td small { display: block; color: var(--soft); font-size: 0.84em; line-height: 1.3; }
.swatch { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; margin-right: 0.45em; }
figure { margin: 0.75rem 0 1.5rem; }
.images { display: grid; grid-template-columns: minmax(0, 34rem); gap: 1rem; }
.several .images { grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.small .images { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
figure img { display: block; width: 100%; height: auto; }
.small img { aspect-ratio: 1; object-fit: contain; background: #f4f4f4; }
.images .label { font-size: 0.85rem; line-height: 1.35; margin: 0.3rem 0 0; }
.images .label { white-space: pre-line; overflow-wrap: anywhere; }
figcaption { color: var(--soft); font-size: 0.93rem; max-width: 44rem; margin-top: 0.4rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 0.3rem 1.2rem; max-width: 52rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  main { padding: 0.5rem 0.9rem 3rem; }
  table { font-size: 0.88rem; }
  th, td { padding-right: 0.8rem; }
  tbody th { min-width: 0; max-width: 9rem; }
  tbody th.long { min-width: 7rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: 0.6rem; }
}
@media print {
  @page { margin: 14mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  .scroll { overflow: visible; background: none; }
  table { font-size: 8.5pt; }
  th, td { padding-right: 0.8em; }
  h2 { margin-top: 1.2rem; }
  h2, h3, .caption { break-after: avoid; }
  figcaption { break-before: avoid; }
  .one, .images > div, .caption, table, tr, .verdict, .warning { break-inside: avoid; }
  .one { display: flex; gap: 1rem; }
  .one img { width: auto; max-width: 11.5cm; max-height: 10.4cm; }
  .one .images { display: block; }
  .several .images { grid-template-columns: repeat(2, 7.6cm); }
  .small .images { grid-template-columns: repeat(5, 1fr); }
  .verdict, .warning, .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
""".strip()


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One page that needs no other file, no network and no JavaScript."""
    links = [block for block in blocks if isinstance(block, Heading) and block.level == 2]
    items = "".join(f'<li><a href="#{escape(link.id)}">{escape(link.text)}</a></li>' for link in links)
    navigation = f'<nav aria-label="Contents"><ul>{items}</ul></nav>'
    parts = [_block_to_html(block, number) for number, block in enumerate(blocks)]
    first = next((k for k, block in enumerate(blocks) if isinstance(block, Heading)), len(parts))
    parts.insert(first, navigation)
    return _PAGE.substitute(title=escape(title), style=_STYLE, body="\n".join(parts))


def _block_to_html(block: Block, number: int) -> str:
    if isinstance(block, Heading):
        return f'<h{block.level} id="{escape(block.id)}">{escape(block.text)}</h{block.level}>'
    if isinstance(block, Verdict):
        text = f"{_paragraphs(block.before)}{_list(block.items)}{_paragraphs(block.after)}"
        headline = f'<p class="headline">{escape(block.headline)}</p>'
        return f'<section class="verdict" aria-label="Verdict">{headline}{text}</section>'
    if isinstance(block, Text):
        text = _list(block.lines) if block.as_list else _paragraphs(block.lines)
        return f'<div class="warning">{text}</div>' if block.warning else text
    if isinstance(block, Table):
        return _table_to_html(block, f"table-{number}")
    if isinstance(block, Facts):
        return "<dl>" + "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in block.items) + "</dl>"
    images = "".join(_image_to_html(image) for image in block.images)
    kind = "small" if block.small else "several" if len(block.images) > 1 else "one"
    caption = f"<figcaption>{escape(block.caption)}</figcaption>"
    return f'<figure class="{kind}"><div class="images">{images}</div>{caption}</figure>'


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{_sentences(line)}</p>" for line in lines)


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_sentences(line)}</li>' for line in lines)}</ul>" if lines else ""


def _sentences(text: str) -> str:
    """Text in which no line break parts a flag, nor a flag and its number."""
    return re.sub(r"--[a-z_.]{1,30}(?: \d+)?", r"<code>\g<0></code>", escape(text))


def _image_to_html(image: Image) -> str:
    data = base64.b64encode(image.content).decode("ascii")
    label = f'<p class="label">{escape(image.label)}</p>' if image.label else ""
    return f'<div><img src="data:{image.mime};base64,{data}" alt="{escape(image.alt)}">{label}</div>'


def _table_to_html(table: Table, id: str) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = []
    for row in table.rows:
        swatch = f'<span class="swatch" style="background:{row.colour}"></span>' if row.colour else ""
        cells = "".join(_cell_to_html(cell) for cell in row.cells)
        long = ' class="long"' if len(row.header) > _LONG_NAME else ""
        rows.append(f'<tr><th scope="row"{long}>{swatch}{escape(row.header)}</th>{cells}</tr>')
    return (
        f'<p class="caption" id="{id}">{escape(table.caption)}</p>'
        f'<div class="scroll" role="region" aria-labelledby="{id}" tabindex="0"><table aria-labelledby="{id}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell_to_html(cell: Cell) -> str:
    if isinstance(cell, str):
        kind = ' class="long"' if len(cell) > _LONG_CELL else ""
        return f"<td{kind}>{escape(cell)}</td>"
    return f"<td>{escape(cell[0])}<small>{escape(cell[1])}</small></td>"


# ------------------------------------------------------------------------------------------------------------ Markdown


def to_markdown(title: str, blocks: Sequence[Block], figures: str) -> str:
    """Markdown; images are named by their place in the folder ``figures``."""
    return "\n\n".join([f"# {_plain(title)}", *[_block_to_markdown(block, figures) for block in blocks]]) + "\n"


def _block_to_markdown(block: Block, figures: str) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}"
    if isinstance(block, Verdict):
        items = "\n".join(f"- {_plain(line)}" for line in block.items)
        parts = [f"**{_plain(block.headline)}**", *map(_plain, block.before), items, *map(_plain, block.after)]
        return "\n\n".join(part for part in parts if part)
    if isinstance(block, Text):
        return (
            "\n".join(f"- {_plain(line)}" for line in block.lines)
            if block.as_list
            else "\n\n".join(map(_plain, block.lines))
        )
    if isinstance(block, Table):
        lines = [_table_line(block.columns), _table_line(["---"] * len(block.columns), escaped=True)]
        lines += [
            _table_line(
                [row.header, *(cell if isinstance(cell, str) else f"{cell[0]} ({cell[1]})" for cell in row.cells)]
            )
            for row in block.rows
        ]
        return "\n".join([f"{_plain(block.caption)}\n", *lines])
    if isinstance(block, Facts):
        return "\n".join(f"- **{_plain(name)}:** {_plain(value)}" for name, value in block.items)
    images = []
    for image in block.images:
        shown = f"![{_plain(image.alt)}]({figures}/{image.file})"
        images.append(f"{shown}\n\n{_plain(image.label)}" if image.label else shown)
    return "\n\n".join([*images, _plain(block.caption)])


def _table_line(cells: Sequence[str], escaped: bool = False) -> str:
    return f"| {' | '.join(cell if escaped else _plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Text in which Markdown sees no mark-up, on one line."""
    return re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", " ".join(text.split()))
