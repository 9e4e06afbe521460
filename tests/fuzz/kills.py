"""Kills processes of runs on workers at random moments, and compares the results with undisturbed ones.

    python tests/fuzz/kills.py --workers 50 --drivers 20 --ray 10 --seed 1

starts certifications, attacks and purifications with two workers and sends SIGKILL to so many workers,
commands and processes of Ray's own; a command that ended starts again until it is done. Prints what was
killed and what differs; exit status 1 if anything does.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    # Modules here are found under their package, as in the suite.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from diffproof.data.named import load_data
from diffproof.pictures import save_picture
from helpers.files import tree
from helpers.processes import family
from helpers.runs import contents

# Long enough that several kills fall into one run, short enough to repeat.
NETWORKS = "--classifier digits --denoiser digits --seed 0"
CERTIFY = (
    f"certify --data digits {NETWORKS} --defense densepure:steps=2,votes=5 --sigma 0.5 --indices 0:60:5"
    " --n 1000 --keep-ballots"
)
ATTACK = (
    f"attack --data digits {NETWORKS} --defense diffpure:t_star=0.15,steps=4 --threat linf --budget 16/255"
    " --attack pgd:iterations=10,eot=4 --draws 2 --majority-of 1 --indices 0:48 --batch-size 4 --diagnose 2"
)
PURIFY = f"purify pictures {NETWORKS} --defense diffpure:t_star=0.3,steps=30 --batch-size 4"
COMMANDS = {"certify": CERTIFY, "attack": ATTACK, "purify": PURIFY}
# What a process of each kind is called, as the operating system shows it.
KINDS = {"workers": ("ray::Actor",), "drivers": ("-m diffproof",), "ray": ("gcs_server", "raylet/raylet")}


class Kills:
    """Kills processes until there were enough.

    Args:
        wanted: how many of each kind.
        seed: of the moments, and of the choices.
        place: folder to work in.
    """

    def __init__(self, wanted: dict[str, int], seed: int, place: Path) -> None:
        self.left, self.random, self.place = Counter(wanted), random.Random(seed), place
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        (place / "pictures").mkdir()
        images, _ = load_data("digits", indices="0:60:2")
        for index, image in enumerate(images):
            save_picture(place / "pictures" / f"{index:02}.png", image)

    def run(self) -> None:
        """Repeat each command, disturbed, until no kill is left."""
        sound = {name: self._sound(name) for name in COMMANDS}
        names = list(COMMANDS)
        for number in range(10_000):
            kinds = [kind for kind in KINDS if self.left[kind] > 0]
            if not kinds:
                return
            name, kind = names[number % len(names)], kinds[number // len(names) % len(kinds)]
            self._disturbed(name, kind, number, sound[name])

    def _sound(self, name: str) -> Path:
        out = self.place / f"{name}-sound"
        self._start(name, out, workers=None).wait()
        return out

    def _start(self, name: str, out: Path, workers: int | None) -> subprocess.Popen[bytes]:
        words = [*COMMANDS[name].split(), "--out", str(out)]
        words += ["--workers", str(workers)] if workers else []
        words += ["--force"] if name == "purify" else []
        log = (self.place / "log").open("ab")
        arguments = [sys.executable, "-m", "diffproof", *words]
        # In a session of its own, whose rest can be ended.
        return subprocess.Popen(
            arguments, cwd=self.place, env=self.environment, stdout=log, stderr=log, start_new_session=True
        )

    def _disturbed(self, name: str, kind: str, number: int, sound: Path) -> None:
        out, starts, killed = self.place / f"{name}-{number}", 0, 0
        while starts < 60:
            command, starts = self._start(name, out, workers=2), starts + 1
            # A few kills a start, then it may end.
            for _ in range({"workers": 5}.get(kind, 1)):
                killed += self._kill(command, kind)
            status = command.wait()
            if status == 0:
                break
        said = f"{name}: {killed} {kind} killed, {starts} starts"
        if status != 0 or self._of(name, out) != self._of(name, sound):
            self.wrong.append(f"{said}: other results, or none (status {status}); see {out}")
        else:
            shutil.rmtree(out)
        print(self.wrong[-1] if self.wrong and said in self.wrong[-1] else f"{said}: the same", flush=True)

    def _kill(self, command: subprocess.Popen[bytes], kind: str) -> bool:
        """Kill one of a kind at a random moment; whether there was one, and a kill left."""
        if self.left[kind] <= 0:
            return False
        moment = time.monotonic() + self.random.uniform(0.0, 12.0 if kind == "workers" else 25.0)
        chosen: list[int] = []
        while command.poll() is None and (time.monotonic() < moment or not chosen):
            time.sleep(0.1)
            if kind == "drivers":
                chosen = [command.pid]
            else:
                processes = family(command.pid).items()
                chosen = [one for one, text in processes if any(sign in text for sign in KINDS[kind])]
        if command.poll() is not None or not chosen:
            return False
        try:
            os.kill(self.random.choice(chosen), signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.left[kind] -= 1
        self.done[kind] += 1
        return True

    @staticmethod
    def _of(name: str, out: Path) -> object:
        if not out.is_dir():
            return None
        return tree(out) if name == "purify" else contents(out)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=1, help=f"kill so many {kind}")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="kills-"))
    kills = Kills({kind: getattr(asked, kind) for kind in KINDS}, asked.seed, place)
    kills.run()
    print(", ".join(f"{count} {kind} killed" for kind, count in kills.done.items()))
    print(f"{len(kills.wrong)} runs with other results" + f"; logs in {place}" * bool(kills.wrong))
    if not kills.wrong:
        shutil.rmtree(place)
    sys.exit(bool(kills.wrong))


if __name__ == "__main__":
    main()
