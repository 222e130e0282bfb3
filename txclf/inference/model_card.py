"""Model card, `README.md` of a bundle: a generated part, and a part of the user that is kept.

---
license: unknown        kept
library_name: …         metadata that hubs read, generated again each time
…
---
# name                  generated again each time
…
<!-- … -->
## Notes                kept
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from txclf.core import storage
from txclf.core.text import shown

MARK = "<!-- Edit below this line. The text below and the license above are kept when the card is written again. -->"
_EARLIER_MARK = "<!-- Yours from here on: it is kept when this card is made again, as the license above. -->"
NOTES = """
## Notes

Intended use, uses out of scope, and a contact for questions.
"""
MAX_CELL_CHARS = 300
"""Characters of a table cell."""
UNKNOWN_LICENSE = "unknown  # set the license of the model"


def write(path: str, metadata: Mapping[str, Any], body: str) -> None:
    """Write a card with the metadata that hubs read; the license and the notes of an existing card are kept."""
    license_, notes = kept_parts(path)
    block = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)
    head = f"---\nlicense: {license_}\n{block}---\n\n"
    storage.write_bytes(path, (head + body.strip() + f"\n\n{MARK}\n{notes}").encode("utf-8", "replace"))


def kept_parts(path: str) -> tuple[str, str]:
    """Return the license and the notes of a card, or the initial ones if they are missing."""
    if not storage.exists(path):
        return UNKNOWN_LICENSE, NOTES
    text = storage.read_bytes(path).decode("utf-8", "replace").replace("\r\n", "\n")
    head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    license_ = re.search(r"^license:[ \t]*(\S.*)$", head[1], re.MULTILINE) if head else None
    _, mark, notes = text.replace(_EARLIER_MARK, MARK).partition(f"{MARK}\n")
    return (license_[1].strip() if license_ else UNKNOWN_LICENSE), (notes if mark else NOTES)


def code(value: object) -> str:
    """Return a value as Markdown code, which shows all its characters as they are."""
    text = shown(value)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def cell(value: object) -> str:
    """Return a value as the text of a Markdown table cell: one line, with markup and borders escaped."""
    text = shown(" ".join(str(value).split()), MAX_CELL_CHARS)
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), ("\\", "\\\\"), ("|", "\\|"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(character, safe)
    return text
