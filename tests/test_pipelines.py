"""Diffusion models of others in the slot: tiny random pipelines, written by diffusers and read back from disk."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diawork.base.compute import Compute
from diawork.base.config import DiffusionConfig, DissolveConfig, ExperimentConfig
from diawork.base.errors import CheckpointError, UsageError
from diawork.base.seeding import isolated_rng
from diawork.data.manifests import load_manifest
from diawork.detectors.dia import DIA
from diawork.method.bank import DissolvedBank
from diawork.method.ddpm import DDPM, build_ddpm
from diawork.method.dissolve import Dissolver, from_model, to_model
from diawork.method.operators import build_operator
from diawork.method.pipelines import PipelineFolder, nearest_steps, open_pipeline
from diawork.method.unet import noise_levels
from diawork.runs.experiment import run_experiment
from diawork.runs.methods import runnable
from diawork.runs.presets import preset
from diawork.runs.resolve import resolve
from diawork.runs.run import find_runs
from diawork.sweeps.launch import data_identities
from diawork.sweeps.sweep import Sweep
from diawork.widgets.stacks import saved_operator
from tests.toys import SETTINGS, TINY

diffusers = pytest.importorskip("diffusers")

X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TS = torch.tensor([3, 100, 600])
UNET = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1,
    "norm_num_groups": 4, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
    "add_attention": False,
}  # fmt: skip
VAE = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 8), "latent_channels": 2, "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "mid_block_add_attention": False, "scaling_factor": 0.4,
}  # fmt: skip


def random_unet(**changes):
    with isolated_rng(0, "unet"):
        return diffusers.UNet2DModel(**UNET | changes)


def write_pipeline(folder, unet=None, scheduler=None, **parts):
    """Write a pipeline's components, each into a folder of its own."""
    parts |= {"unet": unet or random_unet(), "scheduler": scheduler or diffusers.DDPMScheduler()}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def ddpm():
    other = TINY.model_copy(update={"seed": 1, "timesteps": 1000})
    cfg = TINY.model_copy(update={"timesteps": 1000})
    return DDPM(build_ddpm(other).eval(), build_ddpm(cfg).eval(), cfg, {"name": "noise", "images": 3}, [0.5, 1 / 3])


def levels_by_hand(schedule, start=1e-4, end=0.02, steps=1000):
    """Return ᾱ of every step, by the formulas of the papers, in double precision."""
    if schedule == "squaredcos_cap_v2":
        at = np.arange(steps + 1) / steps
        share = np.cos((at + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - share[1:] / share[:-1], 0.999)
    else:
        root = 0.5 if schedule == "scaled_linear" else 1.0
        betas = np.linspace(start**root, end**root, steps) ** (1 / root)
    return np.cumprod(1 - betas)


def start_by_hand(objective, z, output, level):
    """Return the clean estimate from x_t = √ᾱ·x_0 + √(1−ᾱ)·ε and v = √ᾱ·ε − √(1−ᾱ)·x_0, one image at a time."""
    a, s = level**0.5, (1 - level) ** 0.5
    return {"epsilon": (z - s * output) / a, "v_prediction": a * z - s * output, "sample": output}[objective]


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("objective", ["epsilon", "v_prediction", "sample"])
def test_one_step_is_the_formula_of_its_objective_at_the_nearest_noise_level(objective, schedule, tmp_path):
    kind = diffusers.DDIMScheduler if schedule == "scaled_linear" else diffusers.DDPMScheduler
    unet, scheduler = random_unet(), kind(beta_schedule=schedule, prediction_type=objective)
    dissolver = Dissolver(open_pipeline(write_pipeline(tmp_path / "p", unet, scheduler)))
    levels, ours = levels_by_hand(schedule), levels_by_hand("squaredcos_cap_v2")
    for x, t, dissolved in zip(X.split(1), TS.tolist(), dissolver.at(X, TS).split(1), strict=True):
        step = int(np.abs(levels - ours[t]).argmin())
        z = x * 2 - 1
        with torch.no_grad():
            output = unet(z, step).sample
        wanted = (start_by_hand(objective, z, output, levels[step]).clamp(-1, 1) + 1) / 2
        torch.testing.assert_close(dissolved, wanted, atol=2e-5, rtol=0)
        scheduler.set_timesteps(1000)
        theirs = scheduler.step(output, step, z, generator=torch.Generator()).pred_original_sample
        torch.testing.assert_close(dissolved, (theirs.clamp(-1, 1) + 1) / 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid"])
def test_our_noise_levels_are_those_of_the_library(schedule):
    cfg = TINY.model_copy(update={"beta_schedule": schedule, "timesteps": 100})
    torch.testing.assert_close(noise_levels(cfg).float(), build_ddpm(cfg).alphas_cumprod)


def test_steps_are_matched_by_noise_level_and_not_by_index():
    ours = noise_levels(DiffusionConfig())
    theirs = torch.from_numpy(levels_by_hand("linear"))
    steps = nearest_steps(ours, theirs)
    assert (theirs[steps[100]] - ours[100]).abs() < 0.002 and steps[100] < 60
    assert (steps.diff() >= 0).all() and torch.equal(nearest_steps(ours, ours), torch.arange(1000))
    few = theirs[::250]  # of four steps, in order of strength
    assert nearest_steps(ours, few).unique().tolist() == [0, 1, 2, 3]


def test_a_level_without_any_image_is_never_taken():
    assert nearest_steps(torch.tensor([0.9, 0.0]), torch.tensor([0.9, 0.1, 0.0])).tolist() == [0, 1]


def test_size_channels_and_learned_variance_are_bridged(tmp_path):
    unet = random_unet(in_channels=3, out_channels=6, sample_size=16)
    dissolver = Dissolver(open_pipeline(write_pipeline(tmp_path / "p", unet)), DissolveConfig(bridge="resize"))
    z = to_model(X[:1], 16, "resize", channels=3) * 2 - 1
    step, levels = int(dissolver.ddpm.steps[100]), levels_by_hand("linear")
    with torch.no_grad():
        start = start_by_hand("epsilon", z, unet(z, step).sample[:, :3], levels[step])
    wanted = from_model((start.clamp(-1, 1) + 1) / 2, X[:1], "resize")
    torch.testing.assert_close(dissolver.at(X[:1], 100), wanted, atol=2e-5, rtol=0)


def test_latents_are_means_scaled_by_their_own_factor(tmp_path):
    with isolated_rng(0, "vae"):
        unet, vae = random_unet(in_channels=2, out_channels=2), diffusers.AutoencoderKL(**VAE)
    folder = write_pipeline(tmp_path / "p", unet, diffusers.DDIMScheduler(beta_schedule="scaled_linear"), vae=vae)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    dissolver = Dissolver(open_pipeline(folder))
    step, levels = int(dissolver.ddpm.steps[50]), levels_by_hand("scaled_linear")
    with torch.no_grad():
        z = vae.encode(x * 2 - 1).latent_dist.mean * 0.4
        start = start_by_hand("epsilon", z, unet(z, step).sample, levels[step])
        wanted = (vae.decode(start / 0.4).sample.clamp(-1, 1) + 1) / 2
    assert dissolver.ddpm.image_size == (16, 16)
    torch.testing.assert_close(dissolver.at(x, 50), wanted, atol=2e-5, rtol=0)
    assert torch.equal(dissolver.at(x, 50), dissolver.at(x, 50))


def edit(path, **changes):
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "no tokenizer/vocab.json in this folder"),
        ("unet/config.json", {"_class_name": "VQModel"}, "'UNet2DModel' or 'UNet2DConditionModel' .given: 'VQModel'"),
        ("unet/config.json", {"num_class_embeds": 4}, "num_class_embeds: .* .given: 4"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "'positional' .given: 'fourier'"),
        ("unet/config.json", {"sample_size": None}, "sample_size"),
        ("unet/config.json", {"sample_size": [8, 16]}, "is not square"),
        ("unet/config.json", {"in_channels": 2, "out_channels": 2}, "images of 2 channels"),
        ("unet/config.json", {"out_channels": 5}, "out_channels=5 does not fit in_channels=1"),
        ("unet/config.json", {"layers_per_block": 10**9}, "layers_per_block.* 64 "),
        ("unet/config.json", {"block_out_channels": [10**9]}, "block_out_channels.0: .*8192"),
        ("unet/config.json", {"transformer_layers_per_block": 10**6}, "transformer_layers_per_block.* 64 "),
        ("unet/config.json", {"block_out_channels": [8192, 8192]}, r"a network of [\d,]+ weights, and its files hold"),
        ("unet/config.json", {"layers_per_block": 64}, "a network of .* weights, and its files hold"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps: .*10000"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "EulerDiscreteScheduler"},
            "'DDIMScheduler' or 'PNDMScheduler'",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "'sample' .given: 'flow'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "steep"}, "it cannot be loaded"),
        ("unet/config.json", {"block_out_channels": [8, 16]}, "it cannot be loaded"),
        ("unet/config.json", {"layers_per_block": 2}, "a network of .* weights, and its files hold"),
        ("unet/config.json", {"add_attention": True}, "a network of .* weights, and its files hold"),
    ],
)
def test_a_model_that_cannot_fill_the_slot_is_refused_in_a_sentence(plain, file, changes, message, tmp_path):
    shutil.copytree(plain, tmp_path / "p")
    edit(tmp_path / "p" / file, **changes)
    with pytest.raises((UsageError, CheckpointError), match=message) as refused:
        open_pipeline(tmp_path / "p")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("remove", "write", "message"),
    [
        ("", "", "is no folder"),
        ("unet/config.json", "", "no unet/config.json in this folder"),
        ("scheduler/scheduler_config.json", "", "no scheduler/scheduler_config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "", "no diffusion_pytorch_model.safetensors in it."),
        ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin", "writes safetensors"),
        ("unet/config.json", "unet/config.json", "not readable as JSON"),
        ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.safetensors", "cannot be loaded"),
        ("", "vqvae/config.json", "not readable as JSON"),
    ],
)
def test_missing_and_damaged_files_are_refused_with_the_next_step(plain, remove, write, message, tmp_path):
    folder = tmp_path / "p"
    if remove or write:
        shutil.copytree(plain, folder)
    if remove:
        (folder / remove).unlink()
    if write:
        (folder / write).parent.mkdir(exist_ok=True)
        (folder / write).write_bytes(b"nonsense")
    with pytest.raises((UsageError, CheckpointError), match=message):
        open_pipeline(folder)


def test_without_the_extra_it_says_how_to_install_it(plain, monkeypatch):
    monkeypatch.setattr("diawork.method.pipelines.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "diawork\[diffusers\]"'):
        open_pipeline(plain)


def test_the_layout_of_the_first_releases_is_read_and_has_another_digest_with_other_weights(plain, tmp_path):
    flat, other = tmp_path / "flat", write_pipeline(tmp_path / "other")
    flat.mkdir()
    for part in ("unet", "scheduler"):
        for path in (plain / part).iterdir():
            shutil.copy(path, flat)
    x = Dissolver(open_pipeline(plain)).at(X, 100)
    assert torch.equal(Dissolver(open_pipeline(flat)).at(X, 100), x)
    assert PipelineFolder.read(other).digest() == PipelineFolder.read(plain).digest()
    with torch.no_grad():
        (changed := random_unet()).conv_in.bias += 1
    changed.save_pretrained(other / "unet")
    assert PipelineFolder.read(other).digest() != PipelineFolder.read(plain).digest()


def test_opening_and_dissolving_draw_nothing_from_the_global_generators(plain):
    before = torch.get_rng_state()
    Dissolver(open_pipeline(plain)).at(X, 100)
    assert torch.equal(torch.get_rng_state(), before)


# --- through the one face ----------------------------------------------------------------------------


def test_training_explorer_and_bank_see_one_face(plain, ddpm, tmp_path):
    cfg = DissolveConfig(operator="diffusers", model=str(plain), t_range=(30, 130), bank_steps=3)
    dissolver = saved_operator(plain, ddpm, cfg)
    assert dissolver.timesteps == 1000 and dissolver.stack(X, [5, 400]).shape == (2, *X.shape)
    rows, draws = torch.arange(3), torch.Generator().manual_seed(0)
    x_hat, t = dissolver(X, image=rows, flip=rows > 3, generator=draws)
    assert x_hat.shape == X.shape and int(t.min()) >= 30 and int(t.max()) <= 130
    bank = DissolvedBank(dissolver, X, tmp_path, steps=3, origin={"pipeline": "x"}, progress=False)
    seen, t = bank(X, image=rows, flip=rows > 3, generator=draws)
    torch.testing.assert_close(seen, dissolver.at(X, t), atol=1 / 500, rtol=0)


def test_the_explorer_takes_a_model_of_another_size(ddpm, tmp_path):
    folder = write_pipeline(tmp_path / "p", random_unet(sample_size=16))
    assert saved_operator(folder, ddpm, DissolveConfig(bridge="pad")).stack(X, [50]).shape == (1, *X.shape)


def test_the_slot_without_a_model_says_so():
    with pytest.raises(UsageError, match="no folder is named"):
        build_operator(DissolveConfig(operator="diffusers"))
    with pytest.raises(UsageError, match="no folder is named"):
        DIA(None, ExperimentConfig().override({"dissolve.operator": "diffusers"}))


def write_stable_diffusion(folder):
    """Write a tiny Stable Diffusion with random weights and an alphabet of three letters."""
    from transformers import CLIPTextConfig, CLIPTextModel

    (tokens := folder / "tokenizer").mkdir(parents=True)
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "c</w>"]
    (tokens / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tokens / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 6, "pad_token": "<|endoftext|>"}
    (tokens / "tokenizer_config.json").write_text(json.dumps(settings))
    text = CLIPTextConfig(
        vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=6, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with isolated_rng(0, "stable"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 8), layers_per_block=1,
            norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        CLIPTextModel(text).save_pretrained(folder / "text_encoder")
        vae = diffusers.AutoencoderKL(**VAE)
    return write_pipeline(folder, unet, diffusers.PNDMScheduler(beta_schedule="scaled_linear"), vae=vae)


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    pytest.importorskip("transformers")
    return write_stable_diffusion(tmp_path_factory.mktemp("models") / "stable")


def test_stable_diffusion_is_told_the_empty_prompt(stable):
    from transformers import CLIPTextModel

    dissolver = Dissolver(open_pipeline(stable))
    prompt = CLIPTextModel.from_pretrained(stable / "text_encoder")(torch.tensor([[0, 1, 1, 1, 1, 1]]))[0]
    torch.testing.assert_close(dissolver.ddpm.prompt, prompt.detach())
    unet = diffusers.UNet2DConditionModel.from_pretrained(stable / "unet")
    vae = diffusers.AutoencoderKL.from_pretrained(stable / "vae")
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    step, levels = int(dissolver.ddpm.steps[50]), levels_by_hand("scaled_linear")
    with torch.no_grad():
        z = vae.encode(x * 2 - 1).latent_dist.mean * 0.4
        output = unet(z, step, encoder_hidden_states=prompt.expand(2, -1, -1)).sample
        start = start_by_hand("epsilon", z, output, levels[step])
        wanted = (vae.decode(start / 0.4).sample.clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(dissolver.at(x, 50), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("text_encoder/config.json", {"hidden_size": 16}, "text encoder has width 16, its UNet attends to 8"),
        ("text_encoder/config.json", {"model_type": "bert"}, "given: 'bert'"),
        ("text_encoder/config.json", None, "no text_encoder/config.json"),
        ("tokenizer/vocab.json", None, "no tokenizer/vocab.json"),
        ("text_encoder/model.safetensors", None, "it cannot be loaded"),
        ("text_encoder/config.json", {"num_hidden_layers": 2}, "a network of .* weights, and its files hold"),
        ("text_encoder/config.json", {"vocab_size": 10**9}, "a network of .* weights, and its files hold"),
        ("text_encoder/config.json", {"max_position_embeddings": 10**9}, "a network of .* weights, and its files hold"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type: .* .given: 'text_time'"),
    ],
)
def test_a_stable_diffusion_that_is_not_whole_is_refused(stable, file, changes, message, tmp_path):
    shutil.copytree(stable, tmp_path / "p")
    if changes:
        edit(tmp_path / "p" / file, **changes)
    else:
        (tmp_path / "p" / file).unlink()
    with pytest.raises((UsageError, CheckpointError), match=message) as refused:
        open_pipeline(tmp_path / "p")
    assert "\n" not in str(refused.value)


def test_another_text_encoder_is_another_model(stable, tmp_path):
    shutil.copytree(stable, tmp_path / "p")
    before = PipelineFolder.read(tmp_path / "p").digest()
    edit(tmp_path / "p" / "text_encoder" / "config.json", note="changed")
    assert before == PipelineFolder.read(stable).digest() != PipelineFolder.read(tmp_path / "p").digest()


def ran(toy, root, **changes):
    """Run DIA on the toy phantom with a diffusers model in its slot."""
    settings = SETTINGS | {"diffusion.dim": 8, "diffusion.dim_mults": [1], "train.epochs": 1, "diffusion.steps": 2}
    cfg = preset("smoke", dataset=str(toy)).override(settings | {"dissolve.operator": "diffusers"} | changes)
    return run_experiment(cfg, out=root, compute=Compute(), progress=False)


def test_a_run_dissolves_with_a_model_of_others_and_its_content_is_part_of_its_identity(plain, toy, small, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(plain, folder)
    model = {"dissolve.model": str(folder)}
    first = ran(toy, tmp_path / "runs", **model, **{"dissolve.bank_steps": 2})
    facts = first.result()["pipeline"]
    assert facts["unet"] == "UNet2DModel" and facts["digest"] == PipelineFolder.read(folder).digest()
    assert first.result()["detector"] == "model in the slot" and first.done
    assert not list((tmp_path / "runs").glob("ddpm-*"))  # nothing was pretrained
    assert resolve(ExperimentConfig.model_validate(first.config()["config"], strict=False), load_manifest(str(toy)))
    edit(folder / "scheduler" / "scheduler_config.json", beta_end=0.03)
    assert ran(toy, tmp_path / "runs", **model, **{"dissolve.bank_steps": 2}).folder != first.folder


COLOUR = """
name: colours
title: Colour noise in folders
kind: folder
licence: Apache-2.0
citation: none
folder: colours
layout: [split, class]
classes: {0: healthy, 1: lesion}
roles: {healthy: normal, lesion: anomalous}
counts:
  train: {healthy: 8, lesion: 0}
  val: {healthy: 3, lesion: 3}
  test: {healthy: 4, lesion: 4}
image: {size: 16, channels: 3}
t_range: [30, 130]
bridge: resize
"""


def test_a_latent_model_dissolves_colour_images_in_a_whole_run(tmp_path):
    draws = np.random.default_rng(0)
    for split, counts in {"train": (8, 0), "val": (3, 3), "test": (4, 4)}.items():
        for label, n in zip(("healthy", "lesion"), counts, strict=True):
            (folder := tmp_path / "colours" / split / label).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(draws.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "colours.yaml").write_text(COLOUR)
    with isolated_rng(0, "vae"):
        unet, vae = random_unet(in_channels=2, out_channels=2), diffusers.AutoencoderKL(**VAE)
    model = write_pipeline(tmp_path / "latent", unet, vae=vae)
    run = ran(tmp_path / "colours.yaml", tmp_path / "runs", **{"dissolve.model": str(model), "encoder.channels": 3})
    assert run.done and run.result()["pipeline"]["latent"] and len(run.scores("test")) == 8
    assert np.isfinite(run.scores("test")["score"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dissolve.model": "nowhere"}, "nowhere is no folder"),
        ({"dissolve.model": "plain", "dissolve.bridge": "none"}, "16×16 px of toy to the model's 8×8"),
        ({"dissolve.model": "plain", "dissolve.bank_steps": 102}, r"102 outside \[0, 101\]"),
        ({"dissolve.model": "plain", "dissolve.weights": "raw"}, "Use dissolve.weights='ema'"),
    ],
)
def test_what_cannot_run_is_refused_by_the_manifest_alone(changes, message, plain, toy):
    named = {key: str(plain) if value == "plain" else value for key, value in changes.items()}
    with pytest.raises(UsageError, match=message):
        runnable(preset("smoke", dataset=str(toy)).override(named), "diffusers")


def test_grey_models_do_not_take_colour(plain):
    cfg = preset("smoke", dataset="retinamnist").override({"dissolve.model": str(plain), "encoder.channels": 3})
    with pytest.raises(UsageError, match="it sees 1 channel; the images of retinamnist have 3"):
        runnable(cfg, "diffusers")


def test_a_cell_of_a_sweep_is_done_for_this_content_of_the_model(plain, toy, tmp_path):
    shutil.copytree(plain, tmp_path / "model")
    rows = f"[{{method: diffusers, dissolve.model: {tmp_path / 'model'}}}, {{method: identity}}]"
    (tmp_path / "s.yaml").write_text(f"name: s\nfixed: {{dataset: {toy}, preset: smoke}}\naxes: [{{list: {rows}}}]\n")
    before = list(data_identities(Sweep.load(tmp_path / "s.yaml")).values())
    edit(tmp_path / "model" / "scheduler" / "scheduler_config.json", beta_end=0.03)
    after = list(data_identities(Sweep.load(tmp_path / "s.yaml")).values())
    assert before[0] != after[0] and before[1] == after[1]


def test_low_precision_changes_little(plain):
    exact, low = (Dissolver(open_pipeline(plain), compute=Compute(precision=p)) for p in ("fp32", "bf16"))
    assert low.ddpm.model.dtype == torch.bfloat16
    torch.testing.assert_close(low.at(X, 100), exact.at(X, 100), atol=0.02, rtol=0)


def test_raw_weights_are_the_variant_non_ema(plain, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(plain, folder)
    with torch.no_grad():
        (raw := random_unet()).conv_in.bias += 1
    raw.save_pretrained(folder / "unet", variant="non_ema")
    ema, other = (Dissolver(open_pipeline(folder, weights=which)).at(X, 100) for which in ("ema", "raw"))
    assert torch.equal(ema, Dissolver(open_pipeline(plain)).at(X, 100)) and not torch.allclose(ema, other, atol=1e-3)


def test_a_model_beside_the_runs_is_no_run(tmp_path):
    write_pipeline(tmp_path / "model")
    (tmp_path / "model" / "model_index.json").write_text("{}")
    assert find_runs(tmp_path) == []
