"""Tables for papers: LaTeX with the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from diffproof.errors import without_control

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "ℓ": r"$\ell$",
    "ε": r"$\varepsilon$",
    "σ": r"$\sigma$",
    "α": r"$\alpha$",
    "≤": r"$\leq$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def escaped(text: str) -> str:
    """A text that LaTeX prints as it is; line breaks become spaces, control characters are escaped."""
    plain = without_control(" ".join(text.split()))
    return re.sub("|".join(map(re.escape, _SPECIAL)), lambda sign: _SPECIAL[sign[0]], plain)


def tabular(
    columns: str,
    heads: Sequence[Sequence[str]],
    sections: Iterable[Sequence[Sequence[str]]],
    notes: Iterable[str],
) -> str:
    r"""A tabular environment, for \input.

    Args:
        columns: of the environment, such as "lrr".
        heads: lines above the rows, of cells in LaTeX; a line of one cell stands as it is.
        sections: of rows of cells in LaTeX; a rule separates them.
        notes: plain texts, comments above it.
    """
    lines = [
        f"% {without_control(' '.join(note.split()))}" for note in ("needs \\usepackage{booktabs}", *notes)
    ]
    lines += [f"\\begin{{tabular}}{{{columns}}}", "\\toprule"]
    lines += [head[0] if len(head) == 1 else _line(head) for head in heads]
    for section in sections:
        lines += ["\\midrule", *map(_line, section)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
