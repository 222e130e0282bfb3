"""Model card: the generated part is replaced, license and notes are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from txclf.inference import model_card


def test_write_new_card_has_metadata_body_and_empty_notes(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    model_card.write(str(path), {"library_name": "txclf", "tags": ["a: b", "c"]}, "# name\n")
    text = path.read_text()
    assert text.startswith(
        f"---\nlicense: {model_card.UNKNOWN_LICENSE}\nlibrary_name: txclf\ntags:\n- 'a: b'\n- c\n---\n"
    )
    assert text.endswith(f"# name\n\n{model_card.MARK}\n{model_card.NOTES}")


def test_write_again_keeps_license_and_notes(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    model_card.write(str(path), {"library_name": "txclf"}, "# first")
    edited = path.read_text().replace(model_card.UNKNOWN_LICENSE, "mit") + "Ask Ada.\n"
    path.write_text(edited)
    model_card.write(str(path), {"library_name": "txclf"}, "# second")
    assert path.read_text() == edited.replace("# first", "# second")


def test_kept_parts_of_an_earlier_card_are_found(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"---\nlicense: mit\n---\n# x\n\n{model_card._EARLIER_MARK}\n## Notes\n\nMine.\n")
    assert model_card.kept_parts(str(path)) == ("mit", "## Notes\n\nMine.\n")


@pytest.mark.parametrize(
    ("text", "license_"),
    [
        (None, model_card.UNKNOWN_LICENSE),
        ("---\r\nlicense: mit\r\ntags: [x]\r\n---\r\n# x", "mit"),
        ("# no head\nlicense: mit\n", model_card.UNKNOWN_LICENSE),
        ("---\nlicense:\n---\n", model_card.UNKNOWN_LICENSE),
        ("---\nname: x\n", model_card.UNKNOWN_LICENSE),
    ],
)
def test_kept_parts_of_other_cards_are_license_and_initial_notes(
    tmp_path: Path, text: str | None, license_: str
) -> None:
    path = tmp_path / "README.md"
    if text is not None:
        path.write_bytes(text.encode())
    assert model_card.kept_parts(str(path)) == (license_, model_card.NOTES)


def test_cell_escapes_markup_and_borders() -> None:
    assert model_card.cell("a|b\n`c` [d](e) <i>&\\") == "a\\|b \\`c\\` \\[d](e) &lt;i>&amp;\\\\"
    assert model_card.cell("\u202eabc\x1b") == r"\\u202eabc\\x1b"
    assert len(model_card.cell("x" * 50_000)) < 310


def test_code_shows_all_characters_and_is_short() -> None:
    assert model_card.code("a b") == "`a b`"
    assert model_card.code("a``b") == "``` a``b ```"
    assert model_card.code("\u202e\x1b") == r"`\u202e\x1b`"
    assert len(model_card.code("x" * 50_000)) < 110
