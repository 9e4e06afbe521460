"""What a defence can be attacked with: every attack once, as `catalog` has defences."""

from __future__ import annotations

from diffproof.catalog import Method, Setting
from diffproof.values import Choice, Flag, Integer, Numbers, Optional, Real

# A row a setting, however long: it is read as a table.
# fmt: off
_EOT = Setting("eot", Integer(1), 1, "Each iteration sees this many draws of noise.")
_ITERATIONS = Setting("iterations", Integer(1), 100, "The attack takes this many gradient steps.")
_PGD = (
    _ITERATIONS,
    _EOT,
    Setting("step", Optional(Real("> 0")), None, "A step has this length in the threat's norm; by default 2.5·budget/iterations."),
    Setting("loss", Choice("ce", "dlr", "margin"), "ce", "The attack raises this loss."),
    Setting("mean_of", Choice("loss", "logits"), "loss", "The losses or the logits are averaged over the draws." ),
    Setting("direction", Choice("steepest", "sign"), "steepest", "A step goes where the loss grows fastest in the threat's norm, or along the gradient's sign."),
    Setting("random_start", Flag(), False, "The attack starts at a random point of the ball, not at the image." ),
)

ATTACKS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("pgd", "attacks.pgd:PGD", "Projected gradient descent with EOT (Madry et al. 2018).", _PGD),
        Method(
            "autoattack",
            "attacks.autoattack:AutoAttack",
            "The authors' AutoAttack (Croce & Hein 2020); extra diffproof[attacks].",
            (
                Setting("version", Choice("standard", "rand"), "standard", "The version rand is for random defences, standard for others."),
                Setting("eot", Optional(Integer(1)), None, "A gradient of the version rand sees this many draws of noise; by default 20."),
            ),
        ),
        Method(
            "stadv",
            "attacks.stadv:StAdv",
            "Moves pixels instead of changing them (Xiao et al. 2018).",
            (
                _ITERATIONS,
                _EOT,
                Setting("learning_rate", Real("> 0"), 0.01, "Adam has this learning rate, in the units of the budget."),
                Setting("smoothness", Real("> 0"), 0.0025, "The total variation has this weight, divided by the budget."),
            ),
        ),
        Method(
            "fast-lpa",
            "attacks.fast_lpa:FastLPA",
            "Far in pixels, near in the classifier's features (Laidlaw et al. 2021).",
            (
                Setting("iterations", Integer(1), 10, "The attack takes this many gradient steps."),
                _EOT,
            ),
        ),
        Method(
            "diffattack",
            "attacks.diffattack:DiffAttack",
            "PGD on the loss and on the deviation of the states (Kang et al. 2023).",
            (*_PGD, Setting("weight", Real("> 0"), 1.0, "The deviated-reconstruction loss has this weight.")),
        ),
        Method(
            "lagrange",
            "attacks.lagrange:Lagrange",
            "PGD on class and unconditional loss of a diffusion classifier (Chen et al. 2023).",
            (
                *_PGD,
                Setting("weights", Numbers("≥ 0"), [0.0, 1.0, 10.0], "The unconditional loss has these weights, one after the other."),
            ),
        ),
        Method(
            "low-frequency",
            "attacks.low_frequency:LowFrequency",
            "PGD whose perturbation has low frequencies only (Guo et al. 2019).",
            (
                *_PGD,
                Setting("share", Real("in (0, 1]"), 0.5, "This share of the frequencies of each axis may change, the lowest ones."),
            ),
        ),
        Method(
            "selective",
            "attacks.selective:Selective",
            "PGD on the draws of noise that are easiest to break, after DiffHammer (Wang et al. 2024).",
            (
                *_PGD,
                Setting("share", Real("in (0, 1]"), 0.5, "A gradient is the mean over this share of its draws, those nearest to a wrong answer."),
            ),
        ),
        Method(
            "square",
            "attacks.square:Square",
            "Random squares, without gradients (Andriushchenko et al. 2020); extra diffproof[attacks].",
            (
                Setting("queries", Integer(1), 5000, "An image is evaluated at most this many times, a few at the start and end aside."),
            ),
            can=frozenset({"gradient-free"}),
        ),
    )
}
# fmt: on
