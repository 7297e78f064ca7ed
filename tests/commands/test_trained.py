"""What sampling scripts say of their model, wherever it lies."""

import json
import os
import sys

import numpy as np
import pytest
import torch as th
from in_process import in_process
from tiny_runs import save_run

from improved_diffusion import logger, script_util
from improved_diffusion.commands import trained
from improved_diffusion.data.image_source import Labels
from improved_diffusion.diffusion.guidance import Guidance
from improved_diffusion.errors import InputError
from improved_diffusion.options.model import ImageModelOptions
from improved_diffusion.options.using import BoundOptions, ImageSampling


@pytest.fixture
def said(tmp_path):
    """What is logged of a model with 9,999 parameters whose file has a certain name."""

    def describe(path, compile=False):
        options = ImageSampling(model_path=path, compile=compile)
        about = trained.Trained(data={}, has_config=True, room=1000)
        with logger.scoped_configure(dir=tmp_path / "log", format_strs=["log"]):
            trained.describe(options, about, th.nn.Linear(100, 99))
        return (tmp_path / "log" / "log.txt").read_text()

    return describe


TRAINED = {"image_size": 16, "dropout": 0.1, "timestep_respacing": "5"}


def adopt(given=(), **values):
    values = ImageModelOptions.defaults() | values
    return trained.Config("config.json", TRAINED).adopted(ImageModelOptions, values, set(given))


def test_a_message_names_a_few_and_counts_the_rest():
    names = [f"flag{i}" for i in range(trained.MOST_NAMES + 2)]
    assert trained.named(names[:-2]).endswith(names[-3])
    assert trained.named(names).endswith(f"{names[-3]} and 2 more")


def test_flags_that_are_not_given_come_from_the_configuration():
    assert adopt() == {"image_size": 16, "dropout": 0.1}  # and the script's own respacing


def test_a_flag_that_contradicts_the_configuration_is_named_with_both_values():
    with pytest.raises(InputError, match="--image_size is 32, trained with 16"):
        adopt(given={"image_size"}, image_size=32)


def test_flags_that_may_differ_between_training_and_using():
    assert adopt(given={"dropout", "image_size"}, dropout=0.5, image_size=16) == {}


def parse(tmp_path, monkeypatch, *words, content=None):
    """The options of sampling from a model beside a configuration of that content."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    words = ["--model_path", str(tmp_path / "model.pt"), *words]
    monkeypatch.setattr(sys, "argv", ["image_sample.py", *words])
    return trained.parse_for_model(ImageSampling, "Sample.")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"flags": 3}',
        '{"flags": {"image_size": "x"}}',
        '{"flags": {"poly_power": "2"}}',
        '{"flags": {}, "data": {"classes": "abc"}}',
        f'{{"flags": {{"dropout": {"1" * 400}}}}}',
        "\xff",
    ],
)
def test_another_files_configuration(content, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"config\.json is not a run's configuration"):
        parse(tmp_path, monkeypatch, content=content)


def test_a_whole_number_in_the_configuration_is_a_number(tmp_path, monkeypatch):
    options, _ = parse(tmp_path, monkeypatch, content='{"flags": {"poly_power": 2}}')
    assert type(options.poly_power) is float


@pytest.mark.parametrize("name", ["noise_schedul", "predict_V"])
def test_a_misspelt_flag_is_not_overlooked(tmp_path, monkeypatch, name):
    """Its default would be taken without a word."""
    with pytest.raises(InputError, match=f"there is no flag {name}"):
        parse(tmp_path, monkeypatch, content=json.dumps({"flags": {name: True}}))


RECOMMENDED = json.dumps(
    {"flags": {"class_cond": True}, "sampling": {"sampler": "dpmpp", "guidance": 3.0}}
)


def test_how_to_sample_comes_from_the_configuration(tmp_path, monkeypatch):
    options, about = parse(tmp_path, monkeypatch, content=RECOMMENDED)
    assert (options.chosen_sampler.name, options.guidance) == ("dpmpp", 3.0)
    assert about.recommended == {"sampler": "dpmpp", "guidance": 3.0}
    options, about = parse(tmp_path, monkeypatch, "--sampler", "ddim", "--guidance", "1")
    assert (options.chosen_sampler.name, options.guidance) == ("ddim", 1.0)
    assert about.recommended == {}
    options, _ = parse(tmp_path, monkeypatch, "--use_ddim", "True")
    assert options.chosen_sampler.name == "ddim"
    odd = '{"flags": {}, "sampling": {"sampler": "best"}}'
    with pytest.raises(InputError, match="unknown sampler 'best'"):
        parse(tmp_path, monkeypatch, content=odd)
    odd = '{"flags": {}, "sampling": {"guidance": "much"}}'
    with pytest.raises(InputError, match=r"config\.json is not .* \(its sampling: argument --guid"):
        parse(tmp_path, monkeypatch, content=odd)


def test_an_interval_of_guidance_comes_with_its_scale(tmp_path, monkeypatch):
    sampling = {"guidance": 3.0, "guidance_low": 0.5}
    content = json.dumps({"flags": {"class_cond": True}, "sampling": sampling})
    options, _ = parse(tmp_path, monkeypatch, content=content)
    assert options.chosen_guidance == Guidance(3.0, low=0.5)
    options, _ = parse(tmp_path, monkeypatch, "--guidance", "1", content=content)
    assert options.chosen_guidance == Guidance()


def test_only_image_sample_samples_as_recommended(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(RECOMMENDED)
    monkeypatch.setattr(sys, "argv", ["image_nll.py", "--model_path", f"{tmp_path}/model.pt"])
    _, about = trained.parse_for_model(BoundOptions, "Evaluate.")
    assert about.recommended == {}


def test_a_model_without_a_configuration(tmp_path, monkeypatch):
    options, about = parse(tmp_path, monkeypatch, "--image_size", "32")
    assert options.image_size == 32
    assert not about.has_config


def test_what_a_configuration_says_of_the_classes(tmp_path, monkeypatch):
    flags = {"class_cond": True, "num_classes": 5}
    content = json.dumps({"flags": flags, "data": {"classes": ["cat", "dog"]}})
    options, about = parse(tmp_path, monkeypatch, content=content)
    assert options.class_count == 5
    assert about.num_classes == 2
    assert about.class_numbers("dog, 0") == [1, 0]
    assert about.class_numbers("dog\n0\n") == [1, 0]
    with pytest.raises(InputError, match="the model knows no class ','; it knows cat, dog"):
        about.class_numbers(",")
    with pytest.raises(InputError, match="no class '2'; it knows cat, dog"):
        about.class_numbers("2")


def test_class_names_may_have_commas_and_spaces():
    about = trained.Trained({"classes": [" lead", "cats, big", "dog"]}, has_config=True, room=3)
    assert about.class_numbers('"cats, big", lead,dog') == [1, 0, 2]


def test_a_class_may_be_typed_otherwise_than_a_mac_names_its_file():
    about = trained.Trained({"classes": ["Hund", "Ka\u0308tzchen"]}, has_config=True, room=2)
    assert about.class_numbers("K\u00e4tzchen,Ka\u0308tzchen,Hund") == [1, 1, 0]
    labels = Labels.of_names(["K\u00e4tzchen", "Hund"], "name")
    assert labels.numbers_among(about.names, 2, "here", "").tolist() == [1, 0]


@pytest.mark.parametrize(("step", "share"), [(5, "77% of its initial"), (58, "5%"), (59, "")])
def test_a_young_ema_is_warned_of(step, share, said):
    text = said(f"runs/x/ema_0.95_{step:06d}.pt")
    assert ("so expect noise" in text) == bool(share)
    assert share in text


def test_the_model_itself_is_not_warned_of(said):
    assert "expect noise" not in said("runs/ema_0.95_000001/model000001.pt")


def test_parameters_and_precision_are_said(said):
    text = said("model.pt")
    assert "Parameters: 0.01 M" in text
    assert "Precision: fp32" in text


class Bucket:
    """Stands in for blobfile: gs://bucket is a folder."""

    def __init__(self, root):
        self.root = root

    def local(self, path):
        assert path.startswith("gs://bucket/")
        return self.root / path.removeprefix("gs://bucket/")

    def isdir(self, path):
        return self.local(path).is_dir()

    def exists(self, path):
        return self.local(path).exists()

    def listdir(self, path):
        return os.listdir(self.local(path))

    def BlobFile(self, path, mode):
        self.local(path).parent.mkdir(exist_ok=True)
        return open(self.local(path), mode)


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_elsewhere(tiny, images, tmp_path, monkeypatch, capsys):
    """Its configuration is found there, and a model that has none is told of."""
    monkeypatch.setitem(sys.modules, "blobfile", Bucket(tmp_path))
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", "gs://bucket/run")
    settings = {"data_dir": images, "batch_size": 2, "max_steps": 1, "num_threads": 1}
    settings |= {"log_dir": tmp_path / "log"}
    assert in_process("image_train.py", tiny | settings) == 0
    assert "model000001.pt" not in os.listdir(tmp_path / "log")
    monkeypatch.delenv("DIFFUSION_BLOB_LOGDIR")

    using = {"num_samples": 1, "num_threads": 1, "log_dir": tmp_path / "out"}
    capsys.readouterr()
    assert in_process("image_sample.py", using | {"model_path": "gs://bucket/run"}) == 0
    out = capsys.readouterr().out
    assert "Model: gs://bucket/run/ema_0.9999_000001.pt" in out
    assert "No config.json" not in out

    (tmp_path / "run" / "config.json").unlink()
    again = {"model_path": "gs://bucket/run/model000001.pt", "overwrite": True}
    settings = tiny | using | again
    assert in_process("image_sample.py", settings) == 0
    out = capsys.readouterr().out
    assert "No config.json beside the model: its flags are the command line's" in out
    assert "--noise_schedule cosine" in out
    assert "--diffusion_steps 4" in out


def test_small_images_of_classes_that_were_never_trained(tiny_sr, images, tmp_path, capsys):
    """The model has room for five classes and saw two: others have no names, and are refused."""
    settings = {"data_dir": images, "batch_size": 2, "max_steps": 1, "num_threads": 1}
    settings |= {"class_cond": True, "num_classes": 5, "log_dir": tmp_path / "run"}
    assert in_process("super_res_train.py", tiny_sr | settings) == 0
    assert "2 classes by name (of the 5 that the model has room" in capsys.readouterr().out
    small = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    for name, classes in (("known", [1, 0]), ("unknown", [1, 2])):
        np.savez(tmp_path / f"{name}.npz", small, np.array(classes))
    np.savez(tmp_path / "others.npz", small, np.array([1, 0]), classes=np.array(["ape", "cat"]))
    using = {"model_path": tmp_path / "run", "save_png": True, "num_samples": 2, "num_threads": 1}
    using |= {"log_dir": tmp_path / "out"}
    unknown = {"base_samples": tmp_path / "unknown.npz"}
    assert in_process("super_res_sample.py", using | unknown) == 2
    assert "has images of class 2; the model knows cat, dog" in capsys.readouterr().err
    others = {"base_samples": tmp_path / "others.npz"}
    assert in_process("super_res_sample.py", using | others) == 2
    said = "has images of class ape; the model knows cat, dog"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    np.savez(tmp_path / "dog.npz", small, np.array([1, 1]), classes=np.array(["ape", "dog"]))
    dogs = {"base_samples": tmp_path / "dog.npz", "log_dir": tmp_path / "dogs"}
    assert in_process("super_res_sample.py", using | dogs) == 0
    pictures = sorted(os.listdir(tmp_path / "dogs" / "images"))
    assert pictures == ["dog_000000.png", "dog_000001.png"]
    known = {"base_samples": tmp_path / "known.npz"}
    assert in_process("super_res_sample.py", using | known) == 0
    pictures = sorted(os.listdir(tmp_path / "out" / "images"))
    assert pictures == ["cat_000001.png", "dog_000000.png"]
    photos = {"base_samples": images, "overwrite": True}  # a folder of larger ones
    assert in_process("super_res_sample.py", using | photos) == 0
    pictures = sorted(os.listdir(tmp_path / "out" / "images"))
    assert [name.split("_")[0] for name in pictures] == ["cat", "cat"]


def test_an_ema_is_used_without_its_initial_weights(tiny, images, tmp_path, capsys):
    settings = {"data_dir": images, "batch_size": 2, "max_steps": 3, "num_threads": 1}
    settings |= {"log_dir": tmp_path / "run", "ema_rate": 0.99, "lr": 0.01}
    assert in_process("image_train.py", tiny | settings) == 0
    path = tmp_path / "run" / "ema_0.99_000003.pt"
    average, initial = (
        th.load(tmp_path / "run" / name, weights_only=True) for name in (path, "model000000.pt")
    )
    flags = script_util.model_and_diffusion_defaults() | tiny
    model, _ = script_util.create_model_and_diffusion(**flags)
    share = 0.99**3
    for correction in (True, False):
        trained.load_trained(model, str(path), correction)
        for name, p in model.named_parameters():
            wanted = (average[name] - share * initial[name]) / (1 - share)
            th.testing.assert_close(
                p.data, wanted if correction else average[name], atol=1e-5, rtol=0
            )

    using = {"num_samples": 1, "num_threads": 1, "model_path": tmp_path / "run"}
    said, made = [], []
    for correction in (True, False):
        out = tmp_path / f"out {correction}"
        capsys.readouterr()
        flags = using | {"ema_correction": correction, "log_dir": out}
        assert in_process("image_sample.py", flags) == 0
        said.append(capsys.readouterr().out)
        (samples,) = out.glob("*.npz")
        made.append(np.load(samples)["arr_0"])
    assert "EMA: its share of the initial weights, 97.03%, is taken out" in said[0]
    assert "expect noise" not in said[0]
    assert "taken out" not in said[1]
    assert "still holds 97% of its initial weights, so expect noise" in said[1]
    assert not np.array_equal(*made)

    state = tmp_path / "run" / "state000003.pt"
    state.write_bytes(state.read_bytes()[:-100])
    flags = using | {"overwrite": True, "log_dir": tmp_path / "out True"}
    assert in_process("image_sample.py", flags) == 2
    assert "or give --ema_correction False" in capsys.readouterr().err
    assert in_process("image_sample.py", flags | {"ema_correction": False}) == 0

    further = {"resume_checkpoint": tmp_path / "run" / "model000003.pt", "max_steps": 4}
    further |= {"ema_rate": "0.999", "log_dir": tmp_path / "further"}
    for name in ("opt000003.pt", "state000003.pt", "model000000.pt"):  # as of a published model
        (tmp_path / "run" / name).unlink()
    assert in_process("image_train.py", tiny | settings | further) == 0
    capsys.readouterr()
    flags = {"model_path": tmp_path / "further", "num_samples": 1, "num_threads": 1}
    assert in_process("image_sample.py", flags | {"log_dir": tmp_path / "on"}) == 0
    assert "initial weights" not in capsys.readouterr().out


def test_a_run_is_loaded_as_scripts_load_it(tmp_path, tiny):
    """Of a folder the EMA."""
    run = tmp_path / "run"
    model, _ = save_run(run, tiny, {"classes": ["cat", "dog"]}, class_cond=True)
    others = {name: th.zeros_like(weight) for name, weight in model.state_dict().items()}
    th.save(others, run / "model000900.pt")
    loaded = trained.load_run(run)
    x, t, y = th.randn(2, 3, 16, 16), th.tensor([0, 3]), th.tensor([1, 0])
    assert th.equal(loaded.model(x, t, y), model(x, t, y))
    assert not loaded.model.training
    assert loaded.diffusion.num_timesteps == tiny["diffusion_steps"]
    assert (loaded.options.size, loaded.options.in_channels) == (16, 3)
    assert loaded.trained.class_numbers("dog,cat") == [1, 0]
    assert not trained.load_run(run / "model000900.pt").model(x, t, y).any()
    with pytest.raises(InputError, match="--num_channels is 64, trained with 32"):
        trained.load_run(run, num_channels=64)
    with pytest.raises(InputError, match="a model has no flag 'sampler'"):
        trained.load_run(run, sampler="ddim")
    with pytest.raises(InputError, match="num_classes auto is for training"):
        trained.load_run(run, num_classes="auto")


@pytest.mark.parametrize("flags", ["null", "5", '"large_size"', '{"large_size": "x"}'])
def test_a_run_of_another_files_configuration_is_not_loaded(flags, tmp_path, tiny):
    save_run(tmp_path / "run", tiny)
    (tmp_path / "run" / "config.json").write_text(f'{{"flags": {flags}}}')
    with pytest.raises(InputError, match=r"config\.json is not a run's configuration"):
        trained.load_run(tmp_path / "run")


def test_how_to_sample_is_known_of_a_loaded_run(tmp_path, tiny):
    save_run(tmp_path / "run", tiny, class_cond=True)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    sampling = json.loads(RECOMMENDED)["sampling"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"sampling": sampling}))
    assert trained.load_run(tmp_path / "run").trained.recommended == sampling


def test_a_loaded_ema_is_without_its_initial_weights(tmp_path, tiny):
    """But for those who ask for it as it is."""
    model, _ = save_run(tmp_path / "run", tiny)
    ema, first = (tmp_path / "run" / name for name in ("ema_0.5_000001.pt", "model000000.pt"))
    th.save(model.state_dict(), ema)
    th.save({name: th.ones_like(w) for name, w in model.state_dict().items()}, first)
    plain, corrected = (trained.load_run(ema, ema_correction=on).model for on in (False, True))
    for name, value in plain.state_dict().items():
        th.testing.assert_close(corrected.state_dict()[name], 2 * value - 1)


def test_a_file_alone_needs_its_flags(tmp_path, tiny):
    model, _ = save_run(tmp_path / "run", tiny)
    (tmp_path / "run" / "config.json").unlink()
    path = tmp_path / "run" / "model000900.pt"
    loaded = trained.load_run(path, **tiny)
    x, t = th.randn(1, 3, 16, 16), th.tensor([1])
    assert th.equal(loaded.model(x, t), model(x, t))
    with pytest.raises(InputError, match="does not fit"):
        trained.load_run(path)


def test_a_model_that_enlarges_is_loaded_too(tmp_path, tiny_sr):
    flags = script_util.sr_model_and_diffusion_defaults() | tiny_sr
    model, _ = script_util.sr_create_model_and_diffusion(**flags)
    th.save(model.state_dict(), tmp_path / "model000001.pt")
    (tmp_path / "config.json").write_text(json.dumps({"flags": flags}))
    loaded = trained.load_run(tmp_path / "model000001.pt").model
    x, low = th.randn(1, 3, 16, 16), th.randn(1, 3, 8, 8)
    assert th.equal(loaded(x, th.tensor([1]), low_res=low), model.eval()(x, th.tensor([1]), low))
