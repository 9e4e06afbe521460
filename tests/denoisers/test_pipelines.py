"""diffusers pipelines: every setting is honoured as diffusers' own scheduler has it, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diffproof as dp
from diffproof.convert import convert
from diffproof.denoisers.diffusers import load
from helpers.libm import other_libm

STEPS = 40
# Larger than by default, so that 40 of them hide an image.
BETAS = {"beta_start": 0.001, "beta_end": 0.3}


def save_pipeline(folder: Path, kind: str = "DDPMScheduler", unet: Any = None, **scheduler: Any) -> Any:
    """A pipeline as diffusers saves it (model_index.json, unet/, scheduler/), and its network."""
    from diffusers import UNet2DModel, schedulers

    torch.manual_seed(0)
    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (4,),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "mid_block_type": None,
    }
    network = UNet2DModel(**{**settings, **(unet or {})}).eval()
    network.save_pretrained(folder / "unet")
    scheduler = {"num_train_timesteps": STEPS, **BETAS, **scheduler}
    getattr(schedulers, kind)(**scheduler).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", kind],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return network


def change(file: str, **settings: Any) -> Callable[[Path], None]:
    """Changes settings of a file of a pipeline; ... takes one out."""

    def changing(folder: Path) -> None:
        changed = {**json.loads((folder / file).read_text()), **settings}
        given = {name: value for name, value in changed.items() if value is not ...}
        (folder / file).write_text(json.dumps(given))

    return changing


def in_unet(**settings: Any) -> Callable[[Path], None]:
    return change("unet/config.json", **settings)


def in_scheduler(**settings: Any) -> Callable[[Path], None]:
    return change("scheduler/scheduler_config.json", **settings)


def in_index(**settings: Any) -> Callable[[Path], None]:
    return change("model_index.json", **settings)


ACCEPTED: dict[str, tuple[dict[str, Any], str]] = {
    "epsilon": ({}, "epsilon"),
    "sample": ({"prediction_type": "sample"}, "sample"),
    "v_prediction": ({"prediction_type": "v_prediction"}, "v_prediction"),
    "scaled linear": ({"beta_schedule": "scaled_linear"}, "epsilon"),
    "cosine": ({"beta_schedule": "squaredcos_cap_v2"}, "epsilon"),
    "sigmoid": ({"beta_schedule": "sigmoid"}, "epsilon"),
    "laplace": ({"beta_schedule": "laplace"}, "epsilon"),
    "trained betas": ({"trained_betas": [0.01 + 0.005 * i for i in range(STEPS)]}, "epsilon"),
    "zero terminal SNR": (
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        "v_prediction",
    ),
    "DDIM zero terminal SNR": ({"kind": "DDIMScheduler", "rescale_betas_zero_snr": True}, "epsilon"),
    "DPM zero terminal SNR": (
        {"kind": "DPMSolverMultistepScheduler", "rescale_betas_zero_snr": True},
        "epsilon",
    ),
    "UniPC zero terminal SNR": (
        {"kind": "UniPCMultistepScheduler", "rescale_betas_zero_snr": True},
        "epsilon",
    ),
    "DDIM": ({"kind": "DDIMScheduler", "prediction_type": "sample"}, "sample"),
    "parallel DDPM": ({"kind": "DDPMParallelScheduler"}, "epsilon"),
    "PNDM": ({"kind": "PNDMScheduler", "prediction_type": "v_prediction"}, "v_prediction"),
    "DEIS": ({"kind": "DEISMultistepScheduler"}, "epsilon"),
    "DPM-Solver, Karras spacing": (
        {"kind": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
        "epsilon",
    ),
    "DPM-Solver, single steps": (
        {"kind": "DPMSolverSinglestepScheduler", "prediction_type": "sample"},
        "sample",
    ),
    "UniPC": ({"kind": "UniPCMultistepScheduler", "beta_schedule": "squaredcos_cap_v2"}, "epsilon"),
    "not square": ({"unet": {"sample_size": (8, 6)}}, "epsilon"),
    "no size": ({"unet": {"sample_size": None}}, "epsilon"),
    "RGB": ({"unet": {"in_channels": 3, "out_channels": 3}}, "epsilon"),
    "learned variance": ({"unet": {"out_channels": 2}, "variance_type": "learned_range"}, "epsilon"),
    "labels": ({"unet": {"num_class_embeds": 3}}, "epsilon"),
    "learned timesteps": (
        {"unet": {"time_embedding_type": "learned", "num_train_timesteps": STEPS}},
        "epsilon",
    ),
    "centred inside": ({"unet": {"center_input_sample": True}}, "epsilon"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_levels_and_estimates_are_those_of_diffusers(tmp_path: Path, name: str) -> None:
    settings, prediction = ACCEPTED[name]
    network = save_pipeline(tmp_path, **settings)
    check_agreement(tmp_path, network, prediction)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"beta_end": 0.300001}),
        ({"beta_schedule": "squaredcos_cap_v2"}, {"beta_schedule": "sigmoid"}),
        ({"kind": "DDIMScheduler", "rescale_betas_zero_snr": True}, {"kind": "DDIMScheduler"}),
        ({"trained_betas": [0.1] * STEPS}, {"trained_betas": [0.1] * (STEPS - 1) + [0.1 + 2**-56]}),
    ],
)
def test_hashes_hold_the_settings_of_the_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: dict[str, Any], other: dict[str, Any]
) -> None:
    save_pipeline(tmp_path / "one", **one)
    save_pipeline(tmp_path / "other", **other)
    here = load(str(tmp_path / "one"))
    assert load(str(tmp_path / "other")).describe() != here.describe()
    # What only guides sampling is no part of the function.
    in_scheduler(clip_sample=False)(tmp_path / "one")
    other_libm(monkeypatch)
    assert load(str(tmp_path / "one")).describe() == here.describe()


def check_agreement(folder: Path, network: Any, prediction: str) -> None:
    """Compare with what diffusers says of the scheduler's own ᾱ, at the ends and in between."""
    from diffusers import schedulers

    denoiser = load(str(folder))
    kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    bar = getattr(schedulers, kind).from_pretrained(folder / "scheduler").alphas_cumprod
    ddim = schedulers.DDIMScheduler(STEPS, clip_sample=False, prediction_type=prediction)
    ddim.alphas_cumprod = bar
    ddim.set_timesteps(STEPS)
    config = network.config
    shape = (config.in_channels, 8, 6 if config.sample_size == (8, 6) else 8)
    labels = None if config.num_class_embeds is None else torch.tensor([2, 0])
    image, noise = torch.rand(2, *shape), torch.randn(2, *shape)
    finite = int((bar > 0).sum())
    assert denoiser.image_shape == (None if config.sample_size is None else shape)
    assert denoiser.num_classes == config.num_class_embeds
    assert denoiser.sigmas is not None
    assert len(denoiser.sigmas) == finite
    for index in (0, STEPS // 2, finite - 1):
        timesteps, sigma = torch.full((2,), index), float(denoiser.sigmas[index])
        x = ddim.add_noise(2 * image - 1, noise, timesteps)
        noisy = image + sigma * noise
        with torch.no_grad():
            output = network(x, timesteps, class_labels=labels).sample[:, : shape[0]]
            told = denoiser(noisy, sigma, labels)
        torch.testing.assert_close((2 * noisy - 1) * bar[index].sqrt(), x, rtol=1e-5, atol=1e-6)
        expected = ddim.step(output, index, x).pred_original_sample
        torch.testing.assert_close(2 * told - 1, expected, rtol=1e-4, atol=1e-5 * max(1.0, 2 * sigma))


def of_kind(kind: str, **settings: Any) -> Callable[[Path], None]:
    """Makes its scheduler one of another class."""

    def changing(folder: Path) -> None:
        in_index(scheduler=["diffusers", kind])(folder)
        in_scheduler(_class_name=kind, **settings)(folder)

    return changing


def no_table(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]")


def nameless(folder: Path) -> None:
    without_index(folder)
    in_scheduler(_class_name=...)(folder)


def old_names(folder: Path) -> None:
    in_scheduler(prediction_type=..., predict_epsilon=False, tensor_format="pt")(folder)


def without_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def side_by_side(folder: Path) -> None:
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)


def half(folder: Path, keep: bool = False) -> None:
    """Weights as `save_pretrained(variant="fp16")` names them, perhaps beside the whole ones."""
    from diffusers import UNet2DModel

    network = UNet2DModel.from_pretrained(folder / "unet").half()
    if not keep:
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder / "unet", variant="fp16")


def pickled(folder: Path) -> None:
    from diffusers import UNet2DModel

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    UNet2DModel.from_pretrained(folder / "unet").save_pretrained(folder / "unet", safe_serialization=False)
    weights.unlink()


@pytest.mark.parametrize(
    ("spoil", "prediction"),
    [
        (old_names, "sample"),
        (in_scheduler(prediction_type=..., predict_epsilon=True), "epsilon"),
        (in_scheduler(prediction_type=...), "epsilon"),
        (without_index, "epsilon"),
        (side_by_side, "epsilon"),
        (lambda folder: half(folder, keep=True), "epsilon"),
        # What guides sampling alone, settings left out by their default, parts that are not there.
        (
            in_scheduler(clip_sample=True, thresholding=True, steps_offset=1, timestep_spacing="trailing"),
            "epsilon",
        ),
        (in_scheduler(use_flow_sigmas=False, set_alpha_to_one=False, rescale_betas_zero_snr=None), "epsilon"),
        (in_unet(_class_name=..., optimization_step=7, decay=0.99), "epsilon"),
        (in_index(vae=[None, None], requires_safety_checker=True), "epsilon"),
    ],
)
def test_other_ways_to_say_the_same(tmp_path: Path, spoil: Callable[[Path], None], prediction: str) -> None:
    network = save_pipeline(tmp_path)
    spoil(tmp_path)
    if spoil is side_by_side:
        assert load(str(tmp_path)).image_shape == (1, 8, 8)
        (tmp_path / "scheduler_config.json").rename(tmp_path / "scheduler" / "scheduler_config.json")
    check_agreement(tmp_path, network, prediction)


def test_a_copy_in_half_precision_is_taken_where_there_is_no_other(tmp_path: Path) -> None:
    network = save_pipeline(tmp_path)
    half(tmp_path)
    denoiser = load(str(tmp_path))
    for ours, theirs in zip(denoiser.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())


def test_the_command_that_a_pickle_asks_for_makes_it_load(tmp_path: Path) -> None:
    network = save_pipeline(tmp_path)
    pickled(tmp_path)
    with pytest.raises(ValueError, match="convert the pickle that is there: diffproof convert") as raised:
        load(str(tmp_path))
    source, out = str(raised.value).split()[-2:]
    convert(Path(source), Path(out))
    check_agreement(tmp_path, network, "epsilon")


def test_weights_that_were_not_fetched(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match=r"denoiser: .*model.safetensors is a Git LFS pointer in place of"):
        load(str(tmp_path))


FLOW = "FlowMatchEulerDiscreteScheduler"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "prediction": (
        in_scheduler(prediction_type="flow_prediction"),
        "prediction_type in .*expected epsilon, sample,",
    ),
    "misspelt": (in_scheduler(prediction_type="v-prediction"), "prediction_type in .* got 'v-prediction'"),
    "no text": (in_scheduler(prediction_type=["sample"]), r"prediction_type in .* got \['sample'\]"),
    "old and new": (
        in_scheduler(predict_epsilon=False),
        "predict_epsilon in .*prediction_type 'epsilon', got False",
    ),
    "old, no flag": (in_scheduler(prediction_type=..., predict_epsilon="x"), "predict_epsilon in .* got 'x'"),
    "beta schedule": (in_scheduler(beta_schedule="exponential"), "DDPMScheduler refuses .*exponential"),
    "sigmoid DDIM": (of_kind("DDIMScheduler", beta_schedule="sigmoid"), "sigmoid"),
    "SNR of PNDM": (
        of_kind("PNDMScheduler", rescale_betas_zero_snr=True),
        "rescale_betas_zero_snr, which PNDM",
    ),
    "few betas": (in_scheduler(trained_betas=[0.1, 0.2]), "num_train_timesteps in .*expected 2, .*got 40"),
    "negative beta": (in_scheduler(beta_start=-0.1), r"noise levels \(ᾱ\) by .*expected strictly decreasing"),
    "beta over 1": (in_scheduler(beta_end=1.5), r"noise levels \(ᾱ\) by"),
    "no beta": (in_scheduler(beta_start="x"), "DDPMScheduler refuses"),
    "SNR as text": (in_scheduler(rescale_betas_zero_snr="false"), "rescale_betas_zero_snr in .*got 'false'"),
    "no steps": (in_scheduler(num_train_timesteps=0), "num_train_timesteps in .*from 1 to 65536, got 0"),
    "steps as text": (in_scheduler(num_train_timesteps="40"), "num_train_timesteps in .*, got '40'"),
    "endless steps": (in_scheduler(num_train_timesteps=10**9), "num_train_timesteps in .*, got 1000000000"),
    "flow sigmas": (
        of_kind("UniPCMultistepScheduler", use_flow_sigmas=True),
        "use_flow_sigmas in .*expected false",
    ),
    "flow of DDPM": (
        in_scheduler(use_flow_sigmas=True),
        "use_flow_sigmas, which DDPMScheduler does not have",
    ),
    "unknown key": (in_scheduler(snr_shift_scale=3.0), "sets snr_shift_scale, which diffusers would ignore"),
    "no class": (nameless, "does not say which scheduler"),
    "own scheduler": (in_index(scheduler=["my_code", "MyScheduler"]), "is MyScheduler, expected DDPM"),
    "index differs": (in_index(scheduler=["diffusers", FLOW]), f"is {FLOW}, expected DDPM"),
    "list": (no_table, "expected a table of settings"),
    "latent": (in_index(vqvae=["diffusers", "VQModel"]), r"latent pipeline.* vqvae \(VQModel\)"),
    "VAE": (in_index(vae=["diffusers", "AutoencoderKL"]), r"latent pipeline.* vae \(AutoencoderKL\)"),
    "text": (in_index(text_encoder=["transformers", "CLIPTextModel"]), r"has text_encoder \(CLIPTextModel\)"),
    "transformer": (
        in_index(unet=..., transformer=["diffusers", "DiTTransformer2DModel"]),
        r"got|has .*transformer \(DiT",
    ),
    "conditional index": (
        in_index(unet=["diffusers", "UNet2DConditionModel"]),
        r"unet \(UNet2DConditionModel\)",
    ),
    "conditional": (
        in_unet(_class_name="UNet2DConditionModel"),
        "a UNet2DConditionModel, which needs a text",
    ),
    "one dimension": (in_unet(_class_name="UNet1DModel"), "describes a UNet1DModel"),
    "cross attention": (in_unet(cross_attention_dim=64), "sets cross_attention_dim"),
    "Fourier": (in_unet(time_embedding_type="fourier"), "time_embedding_type in .*got 'fourier'"),
    "class timesteps": (in_unet(class_embed_type="timestep"), "class_embed_type in .*got 'timestep'"),
    "class identity": (in_unet(class_embed_type="identity"), "class_embed_type in .*got 'identity'"),
    "size 0": (in_unet(sample_size=0), "sample_size in .*got 0"),
    "size as text": (in_unet(sample_size="8"), "sample_size in .*got '8'"),
    "three sizes": (in_unet(sample_size=[8, 8, 8]), r"sample_size in .*got \[8, 8, 8\]"),
    "pickle": (pickled, "convert the pickle that is there"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_changes_the_function_otherwise_is_refused_by_name(tmp_path: Path, name: str) -> None:
    spoil, message = REFUSED[name]
    save_pipeline(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        load(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "kind",
    ["EDMEulerScheduler", "KarrasVeScheduler", "ScoreSdeVeScheduler", "CMStochasticIterativeScheduler", FLOW],
)
def test_schedulers_of_other_processes_are_refused(tmp_path: Path, kind: str) -> None:
    save_pipeline(tmp_path)
    of_kind(kind)(tmp_path)
    with pytest.raises(ValueError, match=f"is {kind}, expected DDPMScheduler"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"out_channels": 3}, "expected 1 or 2 output channels .*got 3"),
        ({"in_channels": 6, "out_channels": 3}, "expected 6 or 12 output channels .*got 3"),
        ({"out_channels": 2}, "learned variance .*expected learned_range, got fixed_small"),
        (
            {"time_embedding_type": "learned", "num_train_timesteps": STEPS - 1},
            "embeds 39 timesteps, its scheduler has 40",
        ),
    ],
)
def test_networks_that_do_not_fit_their_scheduler(tmp_path: Path, unet: dict[str, Any], message: str) -> None:
    save_pipeline(tmp_path, unet=unet)
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path))


def test_a_latent_pipeline_is_known_by_its_folders(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    without_index(tmp_path)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"latent pipeline.* vae"):
        dp.load_denoiser(str(tmp_path))


@pytest.mark.parametrize("other", [{"act_fn": "mish"}, {"flip_sin_to_cos": False}, {"norm_eps": 0.1}])
def test_hashes_tell_functions_of_the_same_weights(tmp_path: Path, other: dict[str, Any]) -> None:
    save_pipeline(tmp_path)
    before = load(str(tmp_path)).describe()
    change("unet/config.json", _diffusers_version="0.1.0")(tmp_path)
    assert load(str(tmp_path)).describe() == before
    change("unet/config.json", **other)(tmp_path)
    assert load(str(tmp_path)).describe() != before
