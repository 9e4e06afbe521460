"""diffproof convert: the weights come through, and no code in a pickle runs unless its owner says so."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffproof.classifiers.named import load_classifier
from diffproof.cli.main import run
from diffproof.convert import Converted, _end_of, convert
from diffproof.denoisers import edm
from diffproof.denoisers.named import load_denoiser
from diffproof.denoisers.ncsnpp import Architecture
from diffproof.unpickling import USUAL_KEYS, main
from diffproof.weights import load_weights, packaged
from helpers.files import plain_pickle
from helpers.golden_recipe import recipe_state
from helpers.processes import exit_status, forked, until

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2]), "c": torch.ones(2).half()}


class Statement:
    """Runs a statement when unpickled."""

    def __init__(self, statement: str) -> None:
        self.statement = statement

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (self.statement,)


def marking(marker: Path) -> Statement:
    report = "f'{os.getpid()} {os.environ.get(\"SECRET_TOKEN\")}'"
    return Statement(f"import os; open({str(marker)!r}, 'w').write({report})")


def legacy_save(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


SAVES = [torch.save, legacy_save, plain_pickle]


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(lambda path: load_denoiser(str(path)), id="file"),
        pytest.param(lambda path: load_denoiser(f"score_sde:vp/cifar10_ddpmpp@{path}"), id="score_sde"),
        pytest.param(lambda path: load_denoiser(f"edm:cifar10-32x32-cond-vp@{path}"), id="edm"),
        pytest.param(lambda path: load_denoiser(f"openai:cifar10_uncond@{path}"), id="openai"),
        pytest.param(lambda path: load_classifier(str(path)), id="classifier"),
        pytest.param(lambda path: convert(path, path.with_name("o.safetensors")), id="convert"),
    ],
)
@pytest.mark.parametrize("save", SAVES)
def test_a_trap_never_springs(
    load: Callable[[Path], object], save: Callable[[object, Path], None], tmp_path: Path
) -> None:
    marker, path = tmp_path / "ran", tmp_path / "w.pt"
    save({"model": STATE, "ema": {"shadow_params": [marking(marker)]}}, path)
    with pytest.raises(ValueError, match="pickle"):
        load(path)
    assert not marker.exists()
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.slow
def test_with_trust_it_runs_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    marker, path, out = tmp_path / "ran", tmp_path / "w.pt", tmp_path / "o.safetensors"
    torch.save({"state_dict": STATE, "other": marking(marker)}, path)
    assert convert(path, out, trust_pickle=True) == Converted("'state_dict'", 3, 10)
    process, secret = marker.read_text().split()
    assert process != str(os.getpid())
    assert secret == "None"
    assert_holds(out, STATE)


def assert_holds(path: Path, expected: dict[str, Tensor]) -> None:
    found = load_file(path)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("content", "key", "taken"),
    [
        (STATE, None, "the whole file"),
        ({"step": 3, "state_dict": STATE}, None, "'state_dict'"),
        *[({"step": 3, name: STATE, "z": {"x": torch.zeros(1)}}, None, repr(name)) for name in USUAL_KEYS],
        ({"model": {"x": torch.zeros(1)}, "ema": STATE}, None, "'ema'"),
        ({"ema": {"x": torch.zeros(1)}, "model": STATE}, "model", "'model'"),
        ({0: STATE, 1: {"x": torch.zeros(1)}}, "0", "'0'"),
    ],
)
def test_plain_files_need_no_trust(content: object, key: str | None, taken: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert convert(tmp_path / "w.pt", tmp_path / "o.safetensors", key=key) == Converted(taken, 3, 10)
    assert_holds(tmp_path / "o.safetensors", STATE)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["o.safetensors", "w.pt"]


def test_safetensors_and_shared_memory_come_through(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    tied = {"a": whole, "b": whole, "c": whole[3:9:2], "d": whole.reshape(3, 4).T}
    torch.save(tied, tmp_path / "w.pt")
    convert(tmp_path / "w.pt", tmp_path / "o.safetensors")
    convert(tmp_path / "o.safetensors", tmp_path / "again.safetensors")
    assert_holds(tmp_path / "again.safetensors", tied)


def test_a_description_comes_along(tmp_path: Path) -> None:
    source = packaged("denoiser")["digits"]
    convert(source, tmp_path / "o.safetensors")
    assert load_weights(tmp_path / "o.safetensors").description == load_weights(source).description
    x = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    ours, theirs = (load_denoiser(spec)(x, 0.25) for spec in (str(tmp_path / "o.safetensors"), "digits"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


class Small(nn.Module):
    """A network whose class the other process cannot import."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 3), nn.BatchNorm1d(3)])
        self.twin = self.layers[0]
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)
        self.note = object()


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("importable", [True, False])
def test_whole_modules(
    save: Callable[[object, Path], None],
    importable: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3))) if importable else Small()
    save({"epoch": 3, "model": module}, tmp_path / "w.pt")
    monkeypatch.delattr(sys.modules[__name__], "Small")
    main(tmp_path / "w.pt", tmp_path, None)
    assert json.loads((tmp_path / "report.json").read_text()) == {"taken": "'model'"}
    assert_holds(tmp_path / "weights.safetensors", module.state_dict())


class Persistent:
    """Pickles as EDM's classes do: a function of theirs, called with source code and state."""

    state: dict[str, Any]

    def __init__(self, state: dict[str, Any], source: str) -> None:
        self.state = state
        self.source = source

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": self.source,
            "class_name": "Network",
            "state": self.state,
        }
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


# A dict of a class that is not installed, like dnnlib's EasyDict.
Table = type("Table", (dict,), {"__module__": "dnnlib"})


@pytest.fixture
def edm_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that EDM's pickles name, here only: other processes cannot import them."""

    def reconstruct(meta: dict[str, Any]) -> None:
        raise AssertionError("the stand-in is not used")

    reconstruct.__module__ = "torch_utils.persistence"
    reconstruct.__qualname__ = "_reconstruct_persistent_obj"
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(
        sys.modules["torch_utils.persistence"], "_reconstruct_persistent_obj", reconstruct, raising=False
    )
    monkeypatch.setattr(sys.modules["dnnlib"], "Table", Table, raising=False)


def as_edm(tensors: dict[str, Tensor], source: str) -> Persistent:
    """A tree of modules with these tensors, every module one of EDM's classes or torch's ModuleDict."""
    children: dict[str, dict[str, Tensor]] = {}
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if rest:
            children.setdefault(head, {})[rest] = tensor
        else:
            own[head] = tensor
    buffers = {name: own.pop(name) for name in ("resample_filter", "freqs") if name in own}
    parameters: dict[str, Any] = {name: nn.Parameter(tensor) for name, tensor in own.items()}
    modules: dict[str, Any] = {name: as_edm(inner, source) for name, inner in children.items()}
    for name in ("enc", "dec"):
        if name in modules:
            holder = nn.ModuleDict()
            holder._modules.update(modules[name].state["_modules"])
            modules[name] = holder
    state = {
        "training": False,
        "_parameters": {**parameters, "absent": None},
        "_buffers": buffers,
        "_non_persistent_buffers_set": set(),
        "_modules": {**modules, "nothing": None},
        "_init_kwargs": Table(width=3),
    }
    return Persistent(state, source)


@pytest.mark.slow
@pytest.mark.usefixtures("edm_modules")
def test_edm_pickles_without_running_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = Architecture(8, 16, (1, 2), 1, (4,), num_classes=4)
    monkeypatch.setitem(edm.PRESETS, "tiny", architecture)
    state = recipe_state(edm.key_shapes(architecture, augmented=True))
    for name in state:
        if name.endswith("resample_filter"):
            state[name] = torch.full((1, 1, 2, 2), 0.25)
    marker = tmp_path / "ran"
    source = f"open({str(marker)!r}, 'w')"
    content = {
        "ema": as_edm({f"model.{name}": tensor for name, tensor in state.items()}, source),
        "loss_fn": Persistent({"sigma": 0.5}, source),
        "dataset_kwargs": Table(path="somewhere"),
    }
    plain_pickle(content, tmp_path / "edm.pkl")
    with pytest.raises(ValueError, match="--trust-pickle"):
        convert(tmp_path / "edm.pkl", tmp_path / "o.safetensors")
    converted = convert(tmp_path / "edm.pkl", tmp_path / "o.safetensors", trust_pickle=True)
    assert converted.taken == "'ema'"
    assert not marker.exists()
    assert_holds(tmp_path / "o.safetensors", {f"model.{name}": tensor for name, tensor in state.items()})
    denoiser = edm.load("tiny", tmp_path / "o.safetensors")
    assert denoiser(torch.rand(1, 3, 8, 8), 0.5).shape == (1, 3, 8, 8)


@pytest.mark.usefixtures("edm_modules")
def test_a_dict_of_a_missing_class_is_read_as_a_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_pickle(Table(state_dict=STATE, step=3), tmp_path / "w.pkl")
    monkeypatch.delitem(sys.modules, "dnnlib")
    main(tmp_path / "w.pkl", tmp_path, None)
    assert json.loads((tmp_path / "report.json").read_text()) == {"taken": "'state_dict'"}
    assert_holds(tmp_path / "weights.safetensors", STATE)


SCORE_SDE = {"optimizer": {}, "model": STATE, "ema": {"decay": 0.9, "shadow_params": [torch.ones(2)]}}


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        (
            {"step": 3, "weights": STATE},
            None,
            r"key: expected a module or state dict, but the file holds step, w",
        ),
        ({"model": STATE}, "ema", "key: expected 'ema', but the file holds model$"),
        (
            SCORE_SDE,
            None,
            "key: 'ema' is neither a module nor a state dict; name another; the file holds opt",
        ),
        ({"model": {**STATE, "step": 3}}, None, "key: 'model' is neither a module nor a state dict"),
        ({}, None, "key: expected a module or state dict, but the file holds one dict$"),
        ([torch.ones(2)], None, "key: expected a module or state dict, but the file holds one list$"),
        ({1: torch.ones(2)}, "1", "key: '1' is neither a module nor a state dict"),
        ({"model": {1: torch.ones(2)}}, None, "key: 'model' is neither a module nor a state dict"),
        ({"a": torch.ones(2).to_sparse()}, None, "a is no ordinary tensor"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, None, "weights: safetensors takes no .*complex128"),
        ({"\udcff": torch.ones(2)}, None, "weights: safetensors takes no .*surrogates not allowed"),
        ({"__metadata__": torch.ones(2)}, None, "weights: safetensors keeps the name __metadata__"),
    ],
)
def test_no_weights_there(content: object, key: str | None, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "w.pt", tmp_path / "o.safetensors", key=key)
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_no_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.nested.nested_tensor([torch.ones(2)])}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="a is no ordinary tensor"):
        convert(tmp_path / "w.pt", tmp_path / "o.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("raise OSError('first\\nsecond')", "cannot convert .*w.pkl: first second$"),
        (
            "import os, sys; print('out of luck', file=sys.stderr, flush=True); os._exit(9)",
            "loading .*w.pkl ended its process with status 9: out of luck$",
        ),
    ],
)
def test_a_failing_pickle_ends_in_one_line(statement: str, message: str, tmp_path: Path) -> None:
    plain_pickle({"model": STATE, "z": Statement(statement)}, tmp_path / "w.pkl")
    with pytest.raises(ValueError, match=f"convert: {message}"):
        convert(tmp_path / "w.pkl", tmp_path / "o.safetensors", trust_pickle=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.pkl"]


def gone(pid: int) -> bool:
    try:
        # A process that nobody has waited for yet has no command line.
        return not Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def test_what_a_pickle_starts_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffproof.convert.TIME_LIMIT", 1.0)
    for then, status in (("wait", None), ("exit 3", 3)):
        with (tmp_path / "errors").open("wb") as errors:
            script = f"sleep 1000 & echo $! > pid; {then}"
            assert _end_of(["sh", "-c", script], tmp_path, {"PATH": os.environ["PATH"]}, errors) == status
        until(lambda: gone(int((tmp_path / "pid").read_text())))


@pytest.mark.slow
def test_too_long_a_load_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffproof.convert.TIME_LIMIT", 0.5)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    plain_pickle(Statement("import time; time.sleep(1000)"), tmp_path / "w.pkl")
    with pytest.raises(ValueError, match=r"convert: loading .*w.pkl took more than 0.5 s and was ended"):
        convert(tmp_path / "w.pkl", tmp_path / "o.safetensors", trust_pickle=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.pkl"]


@pytest.mark.slow
def test_a_killed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    marker = tmp_path / "pid"
    plain_pickle(
        Statement(
            f"import os, time; open({str(marker)!r} + 'x', 'w').write(str(os.getpid()));"
            f" os.rename({str(marker)!r} + 'x', {str(marker)!r}); time.sleep(1000)"
        ),
        tmp_path / "w.pkl",
    )
    words = ["convert", str(tmp_path / "w.pkl"), str(tmp_path / "o.safetensors"), "--trust-pickle"]
    parent = forked(lambda: run(words))
    until(marker.exists)
    os.kill(parent, signal.SIGKILL)
    exit_status(parent)
    until(lambda: gone(int(marker.read_text())))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["pid", "w.pkl"]


@pytest.mark.slow
def test_floods_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffproof.convert._MOST_WRITTEN", 10**6)
    flood = "import sys\nwhile True: sys.stderr.write('x' * 1000 + '\\n')"
    plain_pickle(Statement(flood), tmp_path / "w.pkl")
    with pytest.raises(ValueError, match=r"File too large|ended its process with status") as caught:
        convert(tmp_path / "w.pkl", tmp_path / "o.safetensors", trust_pickle=True)
    assert len(str(caught.value)) < 700


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    plain_pickle({"model": Small()}, tmp_path / "w.pkl")
    data = (tmp_path / "w.pkl").read_bytes()
    (tmp_path / "w.pkl").write_bytes(data[: len(data) // 2])
    main(tmp_path / "w.pkl", tmp_path, None)
    assert "truncated" in json.loads((tmp_path / "report.json").read_text())["error"]
    assert not (tmp_path / "weights.safetensors").exists()


def test_out_is_checked_first(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    (tmp_path / "old.safetensors").write_text("old")
    with pytest.raises(ValueError, match=r"out: expected a name that ends in \.safetensors, got .*o\.pt"):
        convert(tmp_path / "w.pt", tmp_path / "o.pt")
    with pytest.raises(ValueError, match=r"out: .*old\.safetensors exists; --force overwrites it"):
        convert(tmp_path / "w.pt", tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match=r"out: no such folder: .*gone"):
        convert(tmp_path / "w.pt", tmp_path / "gone" / "o.safetensors")
    with pytest.raises(ValueError, match=r"weights: no such file: .*gone\.pt"):
        convert(tmp_path / "gone.pt", tmp_path / "o.safetensors")
    assert (tmp_path / "old.safetensors").read_text() == "old"
    convert(tmp_path / "w.pt", tmp_path / "old.safetensors", force=True)
    assert_holds(tmp_path / "old.safetensors", STATE)
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE((tmp_path / "old.safetensors").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marker, path, out = tmp_path / "ran", tmp_path / "w.pkl", tmp_path / "o.safetensors"
    plain_pickle({"ema": {"x": torch.zeros(1)}, "net": STATE, "other": marking(marker)}, path)
    assert run(["convert", str(path), str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ("can run any program on your machine with your rights", "--trust-pickle", "no sandbox"):
        assert part in error
    assert not marker.exists()
    assert not out.exists()
    assert run(["convert", str(path), str(out), "--trust-pickle", "--key", "net"]) == 0
    assert capsys.readouterr().out == f"taken: 'net', 3 tensors, 10 values\nwritten: {out}\n"
    assert marker.exists()
    assert run(["convert", str(path), str(out), "--trust-pickle"]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["convert", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "can run any program on your machine with your rights" in shown
    assert "NOT a sandbox" in shown
    for name in USUAL_KEYS:
        assert name in shown
