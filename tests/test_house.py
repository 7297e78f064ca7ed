"""The order of the modules, the names that the reference's users import, and their arguments."""

import ast
import importlib
import inspect
import pkgutil
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from in_process import run_program

import improved_diffusion

PACKAGE = Path(improved_diffusion.__file__).parent

# From the ground up. A room imports from its own floor and from those below. The published modules
# stand on the floor of the concept that they belong to.
FLOORS = [
    "errors",
    "system dist_util",
    "logs logger",
    "nn losses diffusion gaussian_diffusion respace resample",
    "models fp16_util unet",
    "data image_datasets",
    "sampling",
    "evaluation",
    "export reports",
    "options script_util",
    "training train_util",
    "commands",
]
MOST_ROOMS = 26  # of the package with its folders closed

# Names besides those of SIGNATURES.
KEPT_NAMES = {
    "nn": "SiLU GroupNorm32 conv_nd linear avg_pool_nd",
    "losses": "approx_standard_normal_cdf",
    "fp16_util": "convert_module_to_f16 convert_module_to_f32",
    "dist_util": "setup_dist dev load_state_dict",
    "logger": "log dumpkvs getkvs get_dir set_level warn error info debug Logger",
    "gaussian_diffusion": "ModelMeanType ModelVarType LossType",
    "resample": "UniformSampler",
    "unet": "TimestepBlock TimestepEmbedSequential QKVAttention",
    "train_util": "get_blob_logdir find_resume_checkpoint",
    "script_util": "NUM_CLASSES model_and_diffusion_defaults sr_model_and_diffusion_defaults "
    "str2bool",
}

MODEL_FLAGS = (
    "num_channels num_res_blocks learn_sigma class_cond use_checkpoint attention_resolutions "
    "num_heads num_heads_upsample use_scale_shift_norm dropout"
)
DIFFUSION_FLAGS = (
    "num_channels num_res_blocks num_heads num_heads_upsample attention_resolutions dropout "
    "diffusion_steps noise_schedule timestep_respacing use_kl predict_xstart rescale_timesteps "
    "rescale_learned_sigmas use_checkpoint use_scale_shift_norm"
)
STEP = "self model x t clip_denoised=True denoised_fn=None model_kwargs=None"
LOOP = (
    "self model shape noise=None clip_denoised=True denoised_fn=None model_kwargs=None "
    "device=None progress=False"
)

# The reference's arguments, in their order; "*" begins those that go by name only.
SIGNATURES = {
    "nn.update_ema": "target_params source_params rate=0.99",
    "nn.timestep_embedding": "timesteps dim max_period=10000",
    "nn.checkpoint": "func inputs params flag",
    "nn.zero_module": "module",
    "nn.scale_module": "module scale",
    "nn.mean_flat": "tensor",
    "nn.normalization": "channels",
    "losses.normal_kl": "mean1 logvar1 mean2 logvar2",
    "losses.discretized_gaussian_log_likelihood": "x * means log_scales",
    "dist_util.sync_params": "params",
    "logger.configure": "dir=None format_strs=None comm=None log_suffix=''",
    "logger.logkv": "key val",
    "logger.logkv_mean": "key val",
    "logger.logkvs": "d",
    "logger.scoped_configure": "dir=None format_strs=None comm=None",
    "gaussian_diffusion.get_named_beta_schedule": "schedule_name num_diffusion_timesteps",
    "gaussian_diffusion.betas_for_alpha_bar": "num_diffusion_timesteps alpha_bar max_beta=0.999",
    "gaussian_diffusion.GaussianDiffusion": "* betas model_mean_type model_var_type loss_type "
    "rescale_timesteps=False",
    "gaussian_diffusion.GaussianDiffusion.q_mean_variance": "self x_start t",
    "gaussian_diffusion.GaussianDiffusion.q_sample": "self x_start t noise=None",
    "gaussian_diffusion.GaussianDiffusion.q_posterior_mean_variance": "self x_start x_t t",
    "gaussian_diffusion.GaussianDiffusion.p_mean_variance": STEP,
    "gaussian_diffusion.GaussianDiffusion.p_sample": STEP,
    "gaussian_diffusion.GaussianDiffusion.p_sample_loop": LOOP,
    "gaussian_diffusion.GaussianDiffusion.p_sample_loop_progressive": LOOP,
    "gaussian_diffusion.GaussianDiffusion.ddim_sample": f"{STEP} eta=0.0",
    "gaussian_diffusion.GaussianDiffusion.ddim_reverse_sample": f"{STEP} eta=0.0",
    "gaussian_diffusion.GaussianDiffusion.ddim_sample_loop": f"{LOOP} eta=0.0",
    "gaussian_diffusion.GaussianDiffusion.ddim_sample_loop_progressive": f"{LOOP} eta=0.0",
    "gaussian_diffusion.GaussianDiffusion.training_losses": "self model x_start t "
    "model_kwargs=None noise=None",
    "gaussian_diffusion.GaussianDiffusion.calc_bpd_loop": "self model x_start clip_denoised=True "
    "model_kwargs=None",
    "respace.space_timesteps": "num_timesteps section_counts",
    "respace.SpacedDiffusion": "use_timesteps",
    "resample.create_named_schedule_sampler": "name diffusion",
    "resample.LossSecondMomentResampler": "diffusion history_per_term=10 uniform_prob=0.001",
    "resample.ScheduleSampler.sample": "self batch_size device",
    "resample.LossAwareSampler.update_with_local_losses": "self local_ts local_losses",
    "resample.LossAwareSampler.update_with_all_losses": "self ts losses",
    "unet.Upsample": "channels use_conv dims=2",
    "unet.Downsample": "channels use_conv dims=2",
    "unet.ResBlock": "channels emb_channels dropout out_channels=None use_conv=False "
    "use_scale_shift_norm=False dims=2 use_checkpoint=False",
    "unet.AttentionBlock": "channels num_heads=1 use_checkpoint=False",
    "unet.UNetModel": "in_channels model_channels out_channels num_res_blocks "
    "attention_resolutions dropout=0 channel_mult=(1,2,4,8) conv_resample=True dims=2 "
    "num_classes=None use_checkpoint=False num_heads=1 num_heads_upsample=-1 "
    "use_scale_shift_norm=False",
    "unet.UNetModel.forward": "self x timesteps y=None",
    "unet.SuperResModel": "in_channels",
    "unet.SuperResModel.forward": "self x timesteps low_res=None",
    "image_datasets.load_data": "* data_dir batch_size image_size class_cond=False "
    "deterministic=False",
    "image_datasets.ImageDataset": "resolution image_paths classes=None shard=0 num_shards=1",
    "train_util.TrainLoop": "* model diffusion data batch_size microbatch lr ema_rate "
    "log_interval save_interval resume_checkpoint use_fp16=False fp16_scale_growth=0.001 "
    "schedule_sampler=None weight_decay=0.0 lr_anneal_steps=0",
    "train_util.TrainLoop.run_step": "self batch cond",
    "train_util.TrainLoop.forward_backward": "self batch cond",
    "train_util.parse_resume_step_from_filename": "filename",
    "train_util.find_ema_checkpoint": "main_checkpoint step rate",
    "train_util.log_loss_dict": "diffusion ts losses",
    "script_util.create_model_and_diffusion": "image_size class_cond learn_sigma sigma_small "
    f"{DIFFUSION_FLAGS}",
    "script_util.create_model": f"image_size {MODEL_FLAGS}",
    "script_util.sr_create_model_and_diffusion": "large_size small_size class_cond learn_sigma "
    f"{DIFFUSION_FLAGS}",
    "script_util.sr_create_model": f"large_size small_size {MODEL_FLAGS}",
    "script_util.create_gaussian_diffusion": "* steps=1000 learn_sigma=False sigma_small=False "
    "noise_schedule='linear' use_kl=False predict_xstart=False rescale_timesteps=False "
    "rescale_learned_sigmas=False timestep_respacing=''",
    "script_util.add_dict_to_argparser": "parser default_dict",
    "script_util.args_to_dict": "args keys",
}


def modules():
    """The package's modules by dotted name without the package's, and their files."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix("__init__").rstrip(".")] = path
    return {name: path for name, path in found.items() if name}


def imported_modules(path, package, known):
    """The modules among ``known`` that a file of ``package`` imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            origin = ".".join([*(base if node.level else ()), *filter(None, [node.module])])
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.partition(".")[2] for name in names if name.startswith(PACKAGE.name + ".")}
    return found & known


def arrows():
    """Each module with those that it imports."""
    found = modules()
    return {
        name: imported_modules(path, ".".join([PACKAGE.name, *name.split(".")[:-1]]), set(found))
        for name, path in found.items()
        if path.name != "__init__.py"
    }


def room(name):
    return name.partition(".")[0]


def floor(name):
    return next(i for i, rooms in enumerate(FLOORS) if room(name) in rooms.split())


def test_every_room_has_its_floor_and_there_are_few():
    rooms = {room(name) for name in modules()}
    assert rooms == set(" ".join(FLOORS).split()), "give new rooms a floor in FLOORS"
    assert len(rooms) <= MOST_ROOMS


def test_no_import_climbs():
    climbing = [
        f"{name} -> {other}"
        for name, others in arrows().items()
        for other in others
        if floor(other) > floor(name)
    ]
    assert climbing == []


def test_no_circle():
    graph = {name: {o for o in others if o != name} for name, others in arrows().items()}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_the_reading_of_imports_would_notice(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "def f():\n    from .. import logger\n    from ..unet import UNetModel\n"
        "    from .progress import bar\n"
    )
    known = {"logger", "unet", "logs.progress", "data"}
    found = imported_modules(program, f"{PACKAGE.name}.logs", known)
    assert found == {"logger", "unet", "logs.progress"}


@pytest.mark.parametrize("module", KEPT_NAMES)
def test_kept_names(module):
    found = importlib.import_module(f"improved_diffusion.{module}")
    assert [name for name in KEPT_NAMES[module].split() if not hasattr(found, name)] == []


@pytest.mark.parametrize("path", SIGNATURES)
def test_arguments_stay_where_they_were(path):
    parameters = inspect.signature(pkgutil.resolve_name(f"{PACKAGE.name}.{path}")).parameters
    wanted = SIGNATURES[path].split()
    by_name_only = wanted.index("*") if "*" in wanted else len(wanted)
    for position, word in enumerate(word for word in wanted if word != "*"):
        name, _, default = word.partition("=")
        assert name in parameters
        if position < by_name_only:
            assert list(parameters)[position] == name
            assert parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        expected = ast.literal_eval(default) if default else inspect.Parameter.empty
        assert parameters[name].default == expected
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name in parameters.keys() - {word.partition("=")[0] for word in wanted}:
        further = parameters[name]
        assert further.kind in variadic or further.default is not inspect.Parameter.empty


def test_the_command_line_and_the_log_load_nothing_heavy():
    heavy = ("torch", "numpy", "pandas", "PIL", "blobfile")
    program = (
        "import sys, improved_diffusion.commands.cli, improved_diffusion.logger\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert run_program(program) == "[]\n"
