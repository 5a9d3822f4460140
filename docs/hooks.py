"""Hooks of the documentation's build: formulas become MathML, which browsers show without a script or a network."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> Any:
    """Add fences of the language `math` to the Markdown extensions."""
    fence = {"name": "math", "class": "math", "format": _format}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_page_content(html: str, **_: Any) -> str:
    """Remove the scripts that notebooks load from other hosts: their formulas and diagrams are not used."""
    return re.sub(r"<script[^>]*\bsrc=\"(https?:[^\"]*)?\"[^>]*>\s*</script>", "", html)


def _format(source: str, *_: Any, **__: Any) -> str:
    lines = [convert(line, display="block") for line in source.split("\n\n") if line.strip()]
    return f'<div class="math">{"".join(lines)}</div>'
