"""HTML tables of results in notebooks."""

from __future__ import annotations

from txclf.core import html_table


def test_table_escapes_all_text_and_formats_numbers() -> None:
    found = html_table.table(
        "a & b", [["<i>", 1234], [None, 0.123456], [123456.7, "x\x1b"], [True, 0.5]], ["name", '"value"']
    )
    assert found == (
        "<div><b>a &amp; b</b><table><thead><tr><th>name</th><th>&quot;value&quot;</th></tr></thead><tbody>"
        "<tr><td>&lt;i&gt;</td><td>1,234</td></tr><tr><td></td><td>0.1235</td></tr>"
        "<tr><td>123,457</td><td>x\\x1b</td></tr><tr><td>True</td><td>0.5</td></tr></tbody></table></div>"
    )


def test_table_many_rows_are_counted() -> None:
    found = html_table.table("many", [[number] for number in range(25)])
    assert found.count("<tr>") == html_table.MAX_ROWS
    assert "and 5 more" in found
    assert "<thead>" not in found
