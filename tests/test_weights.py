"""Weights files: what goes in comes out, what is broken or dangerous is refused, and hashes see every bit."""

from __future__ import annotations

import json
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from diffproof.classifiers.named import load_classifier
from diffproof.classifiers.saved import build_classifier
from diffproof.denoisers.named import load_denoiser
from diffproof.denoisers.saved import build_denoiser
from diffproof.weights import checksums, hash_tensors, load_into, load_weights, packaged, save_weights
from helpers.files import Trap, plain_pickle

TENSORS = {
    "a.weight": torch.arange(6.0).reshape(2, 3) / 7,
    "b": torch.tensor([1, -2, 3], dtype=torch.int64),
    "c": torch.tensor(float("-0.0"), dtype=torch.float64),
    "d": torch.zeros(0, 4, dtype=torch.bfloat16),
}


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


def test_safetensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    description = {"kind": "classifier", "list": [1, 2.5, None], "text": "σ ≤ 1"}
    save_weights(path, {**TENSORS, "view": torch.eye(4)[:, 1:3]}, description)
    tensors, read = load_weights(path)
    assert_same(tensors, {**TENSORS, "view": torch.eye(4)[:, 1:3]})
    assert read == description
    # The file is an ordinary safetensors file that others read too.
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["diffproof"]) == description
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_saving_gives_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", TENSORS, {})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, TENSORS, {"kind": "old"})
    before = path.read_bytes()
    (tmp_path / "w.safetensors.new").mkdir()
    with pytest.raises(OSError, match=re.escape("w.safetensors.new")):
        save_weights(path, TENSORS, {"kind": "new"})
    assert path.read_bytes() == before


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_save_round_trip(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    tensors, description = load_weights(path)
    assert_same(tensors, TENSORS)
    assert description == {}


@pytest.mark.parametrize("save", [torch.save, plain_pickle])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".bin", ""])
@pytest.mark.parametrize("load", [lambda path: load_weights(path), lambda path: load_classifier(str(path))])
def test_a_pickle_with_code_never_runs(
    tmp_path: Path,
    save: Callable[[object, Path], None],
    suffix: str,
    load: Callable[[Path], object],
) -> None:
    marker, path = tmp_path / "ran", tmp_path / f"w{suffix}"
    save({"a": torch.zeros(2), "b": Trap(marker)}, path)
    with pytest.raises(ValueError, match=r"pickle that (holds|may hold) code.*safetensors.torch.save_file"):
        load(path)
    assert not marker.exists()
    # The trap works: the unsafe way of loading springs it.
    if save is plain_pickle:
        pickle.loads(path.read_bytes())
        assert marker.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".safetensors":
        save_weights(whole, {"a": torch.ones(300)}, {"kind": "x"})
    else:
        torch.save({"a": torch.ones(300)}, whole)
    data = whole.read_bytes()
    path = tmp_path / f"w{suffix}"
    source = random.Random(0)
    cuts = [0, 1, 7, 8, 9, 60, len(data) // 2, len(data) - 1]
    damaged = [data[:cut] for cut in cuts] + [source.randbytes(500) for _ in range(100)]
    if suffix == ".pt":
        # Pickles that begin well end in all kinds of exceptions.
        damaged += [b"\x80\x02" + source.randbytes(100) for _ in range(300)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^weights: .*(is unreadable or truncated|is empty)"):
            load_weights(path)


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.pt"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"weights: no such file: .*{name}"):
        load_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("description", "message"),
    [("[1]", "no table of names and values"), ("{", "unreadable or truncated")],
)
def test_a_damaged_description_is_refused(tmp_path: Path, description: str, message: str) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors", metadata={"diffproof": description})
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": None}, "file.pt does not fit the network: missing weight$"),
        ({"extra": torch.zeros(1)}, "unexpected extra$"),
        ({"weight": torch.zeros(3, 2)}, "misshapen weight$"),
        ({"weight": None, "extra": torch.zeros(1)}, "missing weight; unexpected extra$"),
        ({name: torch.zeros(1) for name in "pqrst"}, "unexpected p, q, r$"),
        ({"bias": torch.tensor([0.0, torch.nan])}, "file.pt does not fit the network: not finite bias$"),
        ({"weight": torch.full((2, 3), torch.inf)}, "not finite weight$"),
    ],
)
def test_load_into_names_what_does_not_fit(change: dict[str, Tensor | None], message: str) -> None:
    module = nn.Linear(3, 2)
    before = hash_tensors(module.state_dict())
    tensors = {name: value for name, value in {**module.state_dict(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_into(module, tensors, "file.pt")
    assert hash_tensors(module.state_dict()) == before


def test_load_into_fills_a_module() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    load_into(target, source.state_dict(), "here")
    assert_same(target.state_dict(), source.state_dict())


def next_float(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed[0] = torch.nextafter(changed[0], torch.tensor(9.0))
    return changed


BASE = {"a": torch.tensor([0.5, 1.5, 0.0, 2.0]), "b": torch.tensor([7])}


@pytest.mark.parametrize(
    "changed",
    [
        {"a": BASE["a"], "c": BASE["b"]},
        {"a": BASE["b"], "b": BASE["a"]},
        {"a": BASE["a"].double(), "b": BASE["b"]},
        {"a": BASE["a"].view(torch.int32), "b": BASE["b"]},
        {"a": BASE["a"].reshape(2, 2), "b": BASE["b"]},
        {"a": BASE["a"].reshape(4, 1), "b": BASE["b"]},
        {"a": next_float(BASE["a"]), "b": BASE["b"]},
        {"a": torch.tensor([0.5, 1.5, -0.0, 2.0]), "b": BASE["b"]},
        {"a": torch.tensor([1.5, 0.5, 0.0, 2.0]), "b": BASE["b"]},
        {"a": BASE["a"]},
        {**BASE, "d": torch.zeros(0)},
    ],
)
def test_a_hash_sees_every_change(changed: dict[str, Tensor]) -> None:
    assert hash_tensors(changed) != hash_tensors(BASE)


def test_a_hash_ignores_order_and_memory_layout() -> None:
    strided = torch.tensor([[0.5, 9], [1.5, 9], [0.0, 9], [2.0, 9]])[:, 0]
    again = {"b": BASE["b"].clone(), "a": strided.requires_grad_()}
    assert not strided.is_contiguous()
    assert hash_tensors(again) == hash_tensors(BASE)
    # SHA-256 of b'a|torch.int64|()|' and eight zero bytes, computed outside: the format does not drift.
    assert hash_tensors({"a": torch.tensor(0)}) == (
        "7579a9a7dee424de53a68aa5389d9c368d38c3c92fd4efa3b517cb6bbadfb5e3"
    )


@pytest.mark.parametrize(
    ("load", "kind"),
    [(load_denoiser, "denoiser"), (load_classifier, "classifier")],
    ids=["denoiser", "classifier"],
)
def test_loading_by_name_and_path(
    load: Callable[[str], nn.Module], kind: str, tmp_path: Path, denoiser: Path
) -> None:
    path = denoiser if kind == "denoiser" else packaged("classifier")["digits"]
    module = load(str(path))
    assert not module.training
    expected = load_weights(path).tensors
    assert_same({name: module.state_dict()[f"network.{name}"] for name in expected}, expected)

    with pytest.raises(ValueError, match=f"^{kind}: unknown name 'digitz'; did you mean digits"):
        load("digitz")
    with pytest.raises(ValueError, match=r"no such file: nowhere/digits\.pt"):
        load("nowhere/digits.pt")
    other = packaged("classifier")["digits"] if kind == "denoiser" else denoiser
    with pytest.raises(ValueError, match=rf"^{kind}: expected a file .* describes \w+$"):
        load(str(other))
    bare = tmp_path / "bare.pt"
    torch.save(expected, bare)
    with pytest.raises(ValueError, match=rf"^{kind}: expected a file .* describes \w+$"):
        load(str(bare))
    tensors, description = load_weights(path)
    partial = tmp_path / "partial.safetensors"
    save_weights(partial, dict(list(tensors.items())[1:]), description)
    with pytest.raises(
        ValueError, match=f"partial.safetensors does not fit the network: missing {next(iter(tensors))}"
    ):
        load(str(partial))


def test_a_near_name_is_offered() -> None:
    with pytest.raises(ValueError, match=r"classifier: unknown name 'digit'; did you mean digits[?]"):
        load_classifier("digit")


@pytest.mark.parametrize(
    ("build", "kind"),
    [(build_denoiser, "denoiser"), (build_classifier, "classifier")],
    ids=["denoiser", "classifier"],
)
def test_an_incomplete_description_is_refused(
    build: Callable[[dict[str, Any]], nn.Module], kind: str, denoiser: Path
) -> None:
    path = denoiser if kind == "denoiser" else packaged("classifier")["digits"]
    description = load_weights(path).description
    build(description)
    used = set(description) - {"kind", "training", "class_names"}
    assert len(used) >= 4
    for name in used:
        without = {key: value for key, value in description.items() if key != name}
        incomplete = f"^{kind}: the weights file's description is incomplete: '{name}'$"
        with pytest.raises(ValueError, match=incomplete):
            build(without)
        with pytest.raises(ValueError, match=f"^{kind}: the weights file's description is "):
            build({**description, name: {"no": "such thing"}})


def test_a_denoiser_stored_in_half_precision_loads_as_float(tmp_path: Path, denoiser: Path) -> None:
    tensors, description = load_weights(denoiser)
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_weights(tmp_path / "half.safetensors", half, description)
    module = load_denoiser(str(tmp_path / "half.safetensors"))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", [2, 400])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool, torch.complex128]
)
def test_checksums_see_one_changed_number(dtype: torch.dtype, size: int) -> None:
    tensor = torch.eye(size).flip(0).to(dtype).T
    before = checksums({"a": tensor, "b": torch.tensor(0.5)})
    assert checksums({"a": tensor.clone(), "b": torch.tensor(0.5)}) == before
    tensor[1, 1] = 1
    assert checksums({"a": tensor, "b": torch.tensor(0.5)}) != before


def test_numbered_tensors_are_no_state_dict(tmp_path: Path) -> None:
    torch.save({1: torch.ones(2), 2: torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"weights: .*w.pt holds no flat state dict of tensors, but 1 \(Tensor"
    ):
        load_weights(tmp_path / "w.pt")
