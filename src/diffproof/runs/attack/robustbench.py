"""The entry of an attacked defence in RobustBench's leaderboards (Croce et al. 2021)."""

from __future__ import annotations

from typing import Any

from diffproof.attacks.views import GradientMode
from diffproof.errors import ArgumentError
from diffproof.methods import parse
from diffproof.runs.attack.report import AttackRow
from diffproof.runs.labels import short_source, short_spec
from diffproof.version import version
from diffproof.wording import counted

# The leaderboards with attacks; each is a folder of RobustBench's model_info.
_BOARDS = {"linf": "Linf", "l2": "L2"}
# What no run knows: about the paper, and whether more data than the usual was trained on.
UNKNOWN = ("link", "name", "authors", "venue", "additional_data", "reported")


def robustbench_entry(row: AttackRow) -> dict[str, Any]:
    """An entry as RobustBench's model_info folder has them, one JSON file a model.

    Accuracies are those of one fresh draw, in percent with two decimals as text. The robust one is
    `autoattack_acc` of a run of AutoAttack's standard version with exact gradients, which the leaderboards
    ask for; of any other attack it is `external`, by which they rank a model where it is given. What a run
    does not know is None, see UNKNOWN.

    Raises:
        ValueError: a threat that has no leaderboard.
    """
    settings = row.settings
    if settings.threat not in _BOARDS:
        raise ArgumentError(
            "format", f"RobustBench ranks {' and '.join(_BOARDS)}, got an attack of {settings.threat}"
        )
    attack = parse("attack", settings.attack).filled()
    standard = (
        attack.name == "autoattack"
        and attack.settings.get("version") == "standard"
        and settings.gradient == GradientMode.EXACT.value
    )
    robust = _percent(row.attacked.fresh.value)
    networks = {"classifier": settings.classifier, "denoiser": settings.denoiser, "guide": settings.guide}
    parts = [f"{name} {short_spec(spec)}" for name, spec in networks.items() if spec is not None]
    unknown = dict.fromkeys(UNKNOWN)
    return {
        **unknown,
        "number_forward_passes": 1,
        "dataset": short_source(settings.data),
        "architecture": ", ".join([settings.describe(), *parts]),
        "eps": settings.budget,
        "clean_acc": _percent(row.clean.fresh.value),
        "autoattack_acc": robust if standard else None,
        **({} if standard else {"external": robust}),
        "footnote": f"{_BOARDS[settings.threat]}, {counted(len(row.results), 'image')} ({settings.split}),"
        f" {settings.describe_attack()}; accuracy of one draw, the mean of {row.attacked.draws};"
        f" under the worst of them {_percent(row.attacked.worst.value)}%. diffproof {version()}",
        "unreliable": None if row.findings is None else not all(one.passed for one in row.findings),
    }


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"
