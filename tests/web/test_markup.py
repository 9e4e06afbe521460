"""HTML from texts: whatever they hold, they stay texts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffproof.web.markup import Html, markup, tag
from helpers.pages import read_page

ODD = '<b>&amp;"quotes"\'</b></script><!-- é σ ℓ2'


def test_elements() -> None:
    made = tag(
        "p", "a ", tag("b", 1), [" c", None], class_="x", data_big=1.5, hidden=True, id=None, open=False
    )
    assert made == '<p class="x" data-big="1.5" hidden>a <b>1</b> c</p>'
    assert tag("br") == "<br>"
    assert markup(Html("<i></i>"), "<i>") == "<i></i>&lt;i&gt;"


@pytest.mark.parametrize("text", [ODD, "two\nlines", " spaces around ", ""])
def test_texts_come_out_as_they_are(text: str) -> None:
    page = read_page(tag("p", text, title=text))
    assert page.text == text
    assert page.one("p").attributes["title"] == text


@pytest.mark.slow
@settings(max_examples=50)
@given(st.text())
def test_any_text_stays_a_text(text: str) -> None:
    page = read_page(tag("p", text, title=text))
    assert page.all("") == [page.one("p")]
    assert page.one("p").children in ([], [page.text])
    # What is no character of a text, or turns its direction, is written out.
    if all(c.isprintable() or c == "\n" for c in text):
        assert page.text == page.one("p").attributes["title"] == text
    page.text.encode("utf-8")


def test_what_is_no_character_is_written_out() -> None:
    assert tag("p", "a\x1b[31m\udcff\u202e\r") == r"<p>a\x1b[31m\xff\u202e\r</p>"
