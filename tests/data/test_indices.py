"""Indices as texts against Python's own ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffproof.data.indices import parse_indices, written_indices
from diffproof.errors import ArgumentError

SIZE = 40


@st.composite
def parts(draw: st.DrawFn) -> tuple[str, range]:
    """A part of a text, and the indices that it stands for."""
    start = draw(st.integers(0, SIZE - 1))
    stop, step = draw(st.integers(start + 1, SIZE)), draw(st.integers(1, SIZE))
    return draw(
        st.sampled_from(
            [
                (f"{start}", range(start, start + 1)),
                (f"{start}:{stop}", range(start, stop)),
                (f"{start}:{stop}:{step}", range(start, stop, step)),
            ]
        )
    )


@pytest.mark.slow
@given(st.lists(parts(), min_size=1, max_size=5))
def test_a_text_stands_for_its_ranges_which_do_not_overlap(given: list[tuple[str, range]]) -> None:
    text = ",".join(part for part, _ in given)
    indices = sorted(index for _, indices in given for index in indices)
    if len(set(indices)) == len(indices):
        assert parse_indices(text, SIZE) == indices
    else:
        with pytest.raises(ValueError, match=r"^indices: expected each image once, got \d+ again in "):
            parse_indices(text, SIZE)


@given(st.text("0123456789:,- ", max_size=12))
def test_any_text_is_indices_or_one_line(text: str) -> None:
    try:
        chosen = parse_indices(text, SIZE)
    except ArgumentError as error:
        refused = error
    else:
        assert chosen == sorted(set(chosen))
        assert chosen
        assert 0 <= chosen[0] <= chosen[-1] < SIZE
        return
    # Any other exception fails the test.
    assert refused.argument == "indices"
    assert "\n" not in refused.problem


@given(st.sets(st.integers(0, SIZE - 1), min_size=1))
def test_what_is_written_reads_as_the_same(indices: set[int]) -> None:
    assert parse_indices(written_indices(sorted(indices)), SIZE) == sorted(indices)


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([3], "3"),
        ([3, 4], "3,4"),
        (range(5), "0:5"),
        (range(0, 40, 8), "0:33:8"),
        ([0, 1, 2, 7, 9, 30], "0:3,7,9,30"),
        ([0, 5, 6, 7], "0,5:8"),
    ],
)
def test_rows_of_indices_are_written_as_ranges(indices: list[int], text: str) -> None:
    assert written_indices(indices) == text


def test_a_part_beyond_the_data_is_refused_wherever_it_stands() -> None:
    for text in (f"0,{SIZE}", f"{SIZE},0", f"0:{SIZE + 1}"):
        with pytest.raises(ValueError, match=f"^indices: the data has {SIZE} images"):
            parse_indices(text, SIZE)
