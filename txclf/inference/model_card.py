"""`card.md` of a bundle: what is made anew each time, and what is the user's and stays.

---
license: unknown        the user's, kept
…
---
# name                  made anew
…
<!-- … -->
## Notes                the user's, kept
"""

from __future__ import annotations

import re

from txclf.core import storage

MARK = "<!-- Yours from here on: it is kept when this card is made again, as the license above. -->"
NOTES = """
## Notes

What the model is meant for, and what not; who may ask whom about it.
"""
UNKNOWN = "unknown  # yours to say"


def write(path: str, task: str, body: str) -> None:
    """Writes a card; the license and the notes of the one that is there stay."""
    license_, notes = kept(path)
    tag = "text2text-generation" if task == "seq2seq" else "text-classification"
    head = f"---\nlicense: {license_}\nlibrary_name: txclf\npipeline_tag: {tag}\n---\n\n"
    storage.write_bytes(path, (head + body.strip() + f"\n\n{MARK}\n{notes}").encode("utf-8", "replace"))


def kept(path: str) -> tuple[str, str]:
    """License and notes of a card; what they begin with where there is no card, or one without them."""
    if not storage.exists(path):
        return UNKNOWN, NOTES
    text = storage.read_bytes(path).decode("utf-8", "replace").replace("\r\n", "\n")
    head = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    found = re.search(r"^license:[ \t]*(\S.*)$", head[1], re.MULTILINE) if head else None
    _, mark, notes = text.partition(f"{MARK}\n")
    return (found[1].strip() if found else UNKNOWN), (notes if mark else NOTES)


def cell(value: object) -> str:
    """Text in a table of Markdown: on one line, and neither markup nor a border."""
    text = " ".join(str(value).split())
    for character, safe in (("&", "&amp;"), ("<", "&lt;"), ("\\", "\\\\"), ("|", "\\|"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(character, safe)
    return text
