"""Cases of command lines: a flag or two of a sound one with values that it was not made for."""

from __future__ import annotations

import shlex
from random import Random

import click

from diffproof.cli.main import diffproof
from fuzz.sound import COMMANDS
from fuzz.trial import Case

_WORDS = """
0 -1 1 2 3 -0 1e999 -1e999 nan inf 1e-300 1e300 0.5 ٣ 99999999 100000 18446744073709551615
18446744073709551616 1_0 0x10 1/0 0,0,0 0:0 0:99999999999 :: : 0:2:0 3,1 -1, 5:1 1/3 [ [1,2] {} null true
none digits imagenet é os:abort strange:make package.strange:make
victim signal:pause sys:exit os:getcwd builtins:dict torch.nn:Identity
time:sleep =1+1 ../x ~ ~/x /dev/null /dev/zero /dev/full /proc/self/mem /proc/nothing data.npz pictures
run-a classes classifier.safetensors denoiser.safetensors plain.pt config.yaml density.json
resnet20@plain.pt resnet99@x openai:x@y edm:cifar10-32x32-cond-vp@plain.pt hf:nowhere hf: hf:classes
timm:nothing torchvision:resnet18 robustbench:x empirical:data.npz:all:3 empirical: dds densepure:steps=0
densepure:votes=99999999,steps=2 diffpure:t_star=1e-300 diffpure:steps=99999999 gdmp:x=1 rdc dc
dc:timesteps=uniform:999999 likelihood coup agdm gradual pgd pgd:iterations=0 pgd:iterations=2,step=nan
pgd:iterations=2,eot=1,loss=x square autoattack stadv lagrange l2 linf bpda surrogate adjoint diffpure
lee-kim cpu cuda cuda:99 mps float16 bfloat16 two-sided cohen csv
"""
_ODD = ("", " ", "9" * 400, "a" * 5000, "a/" * 3000, "\x1b[31mred", "\udcff", "new\nline")
VALUES = (*_WORDS.split(), *_ODD)
# Where a large number is a large piece of work, and no mistake; see `_too_much`.
_WORK = (
    *("n", "n0", "iterations", "draws", "majority_of"),
    *("inner_steps", "points", "width", "layers", "resample"),
)


def _too_much(option: str, value: str) -> bool:
    """Whether it is honest work for days: a user may ask for it."""
    number = value.lstrip("-").replace("_", "")
    return option in _WORK and number.isdigit() and int(number) > 10_000


def options(command: str) -> list[click.Option]:
    """The options of a command, its subcommands included."""
    found: click.Command = diffproof
    for word in command.split():
        if not isinstance(found, click.Group) or word not in found.commands:
            break
        found = found.commands[word]
    return [one for one in found.params if isinstance(one, click.Option)]


def flag_case(random: Random) -> Case:
    """A case of flags."""
    name = random.choice(list(COMMANDS))
    words = shlex.split(COMMANDS[name])
    known = options(name)
    changed = []
    for _ in range(random.choice((1, 1, 1, 2)) if known else 0):
        option = random.choice(known)
        flag, how = option.opts[-1] if option.opts[-1].startswith("--") else option.opts[0], random.random()
        value = random.choice(VALUES)
        # Compiling a U-Net takes a minute of the processor.
        if option.name in ("help", "compile") or _too_much(option.name or "", value):
            continue
        changed.append(flag)
        if option.is_flag:
            words.append(flag)
        elif flag in words and how < 0.1:
            place = words.index(flag)
            del words[place : place + 2]
        elif flag in words and how < 0.95:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    if random.random() < 0.05 or not changed:
        words.insert(random.randrange(1, len(words) + 1), random.choice(VALUES))
        changed.append("a word more")
    out = words[words.index("--out") + 1] if "--out" in words[:-1] else ""
    kind = f"flag {name} {' '.join(changed)}"
    return Case(kind, words, out=out if out in ("out", "out.safetensors") else "")
