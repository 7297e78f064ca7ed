"""results/reproduce.py: what it runs, skips and leaves; the scripts do nothing here."""

import importlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch as th

from improved_diffusion.options.command_line import as_words, parse_options, parse_values
from improved_diffusion.options.training import ImageTraining
from improved_diffusion.options.using import BoundOptions, ImageSampling, JudgeOptions
from improved_diffusion.training.state import RankState, TrainState, random_state

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def reproduce(tmp_path, monkeypatch):
    """The program in an empty project, with scripts that only leave the files of their kind."""
    spec = importlib.util.spec_from_file_location("reproduce", PROJECT / "results/reproduce.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reproduce", module)
    spec.loader.exec_module(module)
    for folder in ("datasets/cifar_train", "datasets/cifar_test"):
        (tmp_path / folder).mkdir(parents=True)
    module.called = []
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    monkeypatch.setattr(module, "run_script", lambda *args: pretend(module, *args))
    monkeypatch.chdir(tmp_path)
    return module


def pretend(module, script, flags, *words):
    module.called.append((script, {key: str(value) for key, value in flags.items()}, words))
    if "out" in flags:
        Path(flags["out"]).touch()
        return
    folder = Path(flags["log_dir"])
    folder.mkdir(parents=True)
    names = {
        "image_train.py": ("progress.csv", "config.json"),
        "image_nll.py": ("bits_per_dim.json", "log.txt"),
        "image_sample.py": ("samples_1x1x1x3.png", "samples_1x1x1x3.npz"),
        "image_eval.py": ("evaluation.json", "evaluation.npz", "evaluation.xlsx"),
    }
    for name in names[script]:
        (folder / name).touch()


def start(module, monkeypatch, *words):
    module.called.clear()
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
    module.main()
    return [script for script, _, _ in module.called]


def test_a_run_is_trained_evaluated_and_published(reproduce, monkeypatch):
    called = start(reproduce, monkeypatch, "--only", "linear", "--data", "Data: copies.")
    evaluated = ["image_nll.py", "image_sample.py", "image_eval.py"]
    ancestral = ["image_sample.py", "image_eval.py"]  # of one EMA alone: it takes long
    presented = ["export_results.py", "compare_runs.py"]
    assert called == ["image_train.py", *evaluated, *ancestral, *evaluated, *presented]
    flags = reproduce.called[0][1]
    course = {"image_size": "32", "num_channels": "64", "num_res_blocks": "2", "lr": "0.0001"}
    course |= {"diffusion_steps": "1000", "batch_size": "8", "microbatch": "4"}
    course |= {"noise_schedule": "linear", "max_steps": "20000", "ema_rate": "0.999,0.9999"}
    assert flags.items() >= course.items()
    assert reproduce.called[1][1]["model_path"] == "runs/results/linear/ema_0.999_020000.pt"
    results = Path("results")
    notes = [flags["note"] for _, flags, _ in reproduce.called if "note" in flags]
    assert len(notes) == 2
    assert all(note.startswith("Data: copies. ") for note in notes)
    workbook = reproduce.called[-2][1]
    assert workbook["out"] == "results/results_lin_sched.xlsx"
    assert workbook["picture"] == "results/linear/ddpm_ema_0.999/samples_1x1x1x3.png"
    assert (results / "linear" / "nll_ema_0.9999" / "bits_per_dim.json").exists()
    assert {path.name for path in results.rglob("*.npz")} == {"evaluation.npz"}
    assert not list(results.rglob("log.txt"))
    assert not list(Path("runs").rglob(".nll*")), "evaluations have their final names"


def test_samples_are_judged_and_weights_published_in_half_the_size(reproduce, monkeypatch):
    run = Path("runs/results/cifar10_hour")
    run.mkdir(parents=True)
    weights, initial = {"w": th.randn(2000)}, {"w": th.randn(2000)}
    th.save(weights, run / "ema_0.998_018600.pt")
    th.save(initial, run / "model000000.pt")
    random = RankState(random_state())
    state = TrainState(updates=4400, averaged={"0.998": 4400}, ranks=[random])
    th.save(state.as_file(), run / "state018600.pt")
    for name in ("model018600.pt", "progress.csv", "config.json"):
        (run / name).touch()
    called = start(reproduce, monkeypatch, "--only", "cifar10_hour")
    assert called[:-1] == ["image_nll.py", *["image_sample.py"] * 2, *["image_eval.py"] * 2]
    assert called[-1] == "export_results.py"
    judged = {
        Path(flags["log_dir"]).name: flags["samples"] for _, flags, _ in reproduce.called[3:5]
    }
    assert judged[".judged_guided_ema_0.998"] == "runs/results/cifar10_hour/guided_ema_0.998"
    published = Path("results/cifar10_hour/ema_0.998_018600.pt")
    assert Path("results/cifar10_hour/judged_guided_ema_0.998/evaluation.npz").exists()
    half = th.load(published, weights_only=True)["w"]
    assert half.dtype == th.float16
    share = 0.998**4400
    exact = (weights["w"] - share * initial["w"]) / (1 - share)
    assert th.allclose(half.float(), exact, rtol=1e-3, atol=1e-5)
    assert published.stat().st_size < 0.7 * (run / published.name).stat().st_size


def test_what_is_done_is_skipped(reproduce, monkeypatch):
    start(reproduce, monkeypatch, "--only", "linear,study_cosine")
    assert start(reproduce, monkeypatch, "--only", "linear,study_cosine") == []
    Path("results/study.xlsx").unlink()
    Path("results/results_lin_sched.xlsx").unlink()
    called = start(reproduce, monkeypatch, "--only", "study_cosine")
    assert called == ["export_results.py", "compare_runs.py"]
    for made in ("results/linear", "runs/results/linear"):  # made again, it is shown again
        shutil.rmtree(made)
    called = start(reproduce, monkeypatch, "--only", "linear")
    assert called[0] == "image_train.py"
    assert called[-2:] == ["export_results.py", "compare_runs.py"]


def test_an_evaluation_that_was_interrupted_is_made_again(reproduce, monkeypatch):
    torn = Path("runs/results/study_cosine/.nll_ema_0.999")
    torn.mkdir(parents=True)
    (torn / "half").touch()
    (torn.parent / "state003000.pt").touch()
    (torn.parent / "progress.csv").touch()
    (torn.parent / "config.json").touch()
    called = start(reproduce, monkeypatch, "--only", "study_cosine")
    assert called == ["image_nll.py", "image_sample.py", "image_eval.py", "compare_runs.py"]
    assert not (torn.parent / "nll_ema_0.999" / "half").exists()


def test_publishing_is_whole_or_not_at_all(reproduce, monkeypatch):
    copytree = reproduce.shutil.copytree

    def torn(source, target, **settings):
        copytree(source, target, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce.shutil, "copytree", torn)
    with pytest.raises(KeyboardInterrupt):
        start(reproduce, monkeypatch, "--only", "study_cosine")
    monkeypatch.setattr(reproduce.shutil, "copytree", copytree)
    Path("runs/results/study_cosine/state003000.pt").touch()
    assert start(reproduce, monkeypatch, "--only", "study_cosine") == ["compare_runs.py"]
    published = Path("results/study_cosine")
    assert {path.name for path in published.iterdir()} >= {"progress.csv", "dpmpp_ema_0.999"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_waits_for_the_script_to_save(number, status, tmp_path):
    """The script takes a while to save after the signal; it must get that while."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "slow.py").write_text(
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.7)\n"
        "    open('saved', 'w').close()\n"
        "    sys.exit(1)\n"
        "signal.signal(signal.SIGINT, save)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    program = (
        f"import sys; sys.path.insert(0, {str(PROJECT / 'results')!r})\n"
        "import reproduce\n"
        "from improved_diffusion.commands import cli\n"
        "cli.run(lambda: reproduce.run_script('slow.py', {}))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.stdout.readline() not in ("ready\n", ""):
        pass
    # A terminal sends Ctrl-C to all of its processes, SIGTERM comes to one.
    send = os.killpg if number == signal.SIGINT else os.kill
    send(process.pid, number)
    assert process.wait(60) == status
    assert (tmp_path / "saved").exists()
    process.communicate()


OPTIONS = {
    "image_train.py": ImageTraining,
    "image_nll.py": BoundOptions,
    "image_sample.py": ImageSampling,
    "image_eval.py": JudgeOptions,
}


def test_the_scripts_take_the_flags_of_every_run(reproduce, monkeypatch):
    monkeypatch.setattr(reproduce, "save_half", lambda path, out: None)
    long_ones = {job.name for job in reproduce.chosen_jobs("")}
    called = start(reproduce, monkeypatch, "--only", ",".join([*long_ones, "ablation", "quarter"]))
    assert {*OPTIONS, "export_results.py", "compare_runs.py"} == set(called)
    assert called.count("image_train.py") > len(long_ones)
    for script, flags, _ in reproduce.called:
        if script == "image_train.py":
            parse_options(ImageTraining, None, as_words(flags))
        elif script in OPTIONS:  # what the model's flags must agree with is in its config.json
            parse_values(OPTIONS[script], None, as_words(flags))


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--only", "best"], "no run 'best'; choose from linear"), ([], "cifar10.py")],
)
def test_bad_input_is_one_line(words, said, tmp_path):
    (tmp_path / "results").mkdir()  # a project without images, where nothing is done
    program = shutil.copy(PROJECT / "results" / "reproduce.py", tmp_path / "results")
    command = [sys.executable, program, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_only_what_is_not_done_needs_images(reproduce, monkeypatch):
    start(reproduce, monkeypatch, "--only", "linear")
    for folder in (reproduce.TRAIN_DATA, reproduce.TEST_DATA):
        folder.rmdir()
    assert start(reproduce, monkeypatch, "--only", "linear") == []
    with pytest.raises(reproduce.InputError, match="no images in datasets/cifar_train"):
        start(reproduce, monkeypatch, "--only", "linear,polynomial")


def test_an_update_of_every_run_can_be_timed(monkeypatch, tiny):
    monkeypatch.syspath_prepend(str(PROJECT / "results"))
    step_times = importlib.import_module("step_times")
    flags = {"class_cond": True, "num_classes": 3, "batch_size": 2, "precision": "fp32"}
    job = step_times.Job("some", tiny | flags, 9)
    worker = step_times.Worker(step_times.updates, job, 1)
    worker.step()
    assert worker.milliseconds[0] > 0
    assert worker.close() > 1  # MB
    assert not worker.process.is_alive()
