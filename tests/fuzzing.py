"""Files that were changed by chance or made to do harm, and what reading them must not do.

A *subject* is a kind of file: real ones to begin with, ways to change them, and what reads them. A
case is one changed file. It is read, or refused with the reader's error; nothing in it is executed,
nothing is written outside of the case's folder, and memory is bounded.
"""

import contextlib
import functools
import gzip
import importlib.util
import io
import json
import os
import pickle
import resource
import struct
import sys
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from hypothesis import strategies as st
from made_files import Harmful, cifar_members, laughs, tar_of
from PIL import Image
from tiny_runs import write_images

from improved_diffusion import logger, script_util
from improved_diffusion.commands import training as training_command
from improved_diffusion.commands.trained import parse_for_model
from improved_diffusion.data.cifar_archive import read_archive
from improved_diffusion.data.image_files import open_image, squared
from improved_diffusion.data.sources import open_source
from improved_diffusion.errors import InputError
from improved_diffusion.evaluation.bits_per_dim import BpdTable, estimate_bpd
from improved_diffusion.evaluation.judge import Line, Verdict
from improved_diffusion.evaluation.network_weights import load_network
from improved_diffusion.evaluation.quality import (
    FIGURES_OF_ALL,
    Figure,
    Reference,
    kernel_distance,
)
from improved_diffusion.image_datasets import load_data
from improved_diffusion.logs import tables
from improved_diffusion.logs.formats import CSVOutputFormat, JSONOutputFormat
from improved_diffusion.options.training import ImageTraining
from improved_diffusion.options.using import ImageSampling
from improved_diffusion.reports.bpd_report import save_table
from improved_diffusion.reports.comparison import Run as ComparedRun
from improved_diffusion.reports.comparison import read_run
from improved_diffusion.reports.comparison_report import save_workbook
from improved_diffusion.reports.run_workbook import export_workbook
from improved_diffusion.reports.verdict_report import save_verdict
from improved_diffusion.resample import LossSecondMomentResampler
from improved_diffusion.sampling.denoising import read_picture
from improved_diffusion.sampling.image_noise import ImageNoise
from improved_diffusion.train_util import TrainLoop
from improved_diffusion.training import checkpoints

PROJECT = Path(__file__).resolve().parent.parent
GIB = 2**30
ROOM = 2 * GIB  # of address space for a case: a picture of MAX_PIXELS takes half a GiB
STEP = 3  # of the checkpoint that is changed


# -- watching ------------------------------------------------------------------------------------

# What a reader of data has no reason to do; Python tells an audit hook of each.
HARM = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen",
    "pickle.find_class", "ctypes.dlopen", "socket.connect", "shutil.rmtree", "os.kill",
)  # fmt: skip
WRITES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod")
_allowed: Path | None = None  # the folder in which a case may write
_harm: list[str] = []


def _watch(event: str, args: tuple) -> None:
    if _allowed is None:
        return
    writes = event in WRITES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
    foreign = event == "exec" and not _is_importing()
    if event in HARM or foreign or (writes and not _is_allowed(args[0])):
        _harm.append(f"{event} {args!r}")
        raise PermissionError(f"harm: {event}")


def _is_importing() -> bool:
    """Whether code is executed because a module is imported late."""
    frame = sys._getframe()
    while frame := frame.f_back:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
    return False


def _is_allowed(path: Any) -> bool:
    if isinstance(path, int):
        return True
    return Path(os.path.abspath(os.fsdecode(path))).is_relative_to(_allowed or "")


@functools.cache
def _start_watching() -> None:
    sys.addaudithook(_watch)  # which stays as long as the process


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[None]:
    """Fail if the block executes anything, writes outside of ``folder``, or needs much memory.

    Memory is bounded by ``RLIMIT_AS``: :data:`ROOM` more than the process has mapped before.
    """
    global _allowed
    _start_watching()
    _harm.clear()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, hard))
    _allowed = folder.resolve()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        _allowed = None
        tempfile.tempdir = before
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        assert not _harm, str(_harm)


# -- changing ------------------------------------------------------------------------------------


HARMFUL = (
    Harmful(os.mkdir, "harm"),
    Harmful(os.system, "touch harm"),
    Harmful(exec, "harm = 1"),
    Harmful(eval, "print('harm')"),
    Harmful(open, "harm", "w"),
    Harmful(th.load, "harm"),
    Harmful(getattr, "harm", "upper"),
    Harmful(bytearray, 2**40),
    Harmful(th.zeros, (2**40,)),
)
NUMBERS = (
    0, 1, -1, 2, 127, 2**15, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, 2**64, 10**30,
    10**400,  # more than a float holds
)  # fmt: skip
PIECES = (
    b"\0",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\0" * 8,
    b"PK\x05\x06",
    b"\x80\x04.",
    b"\n",
    b'"',
)


@st.composite
def mangled(draw: Callable, data: bytes, most: int = 3) -> bytes:
    """``data`` with some bits, bytes or stretches of it changed, lost, doubled or put in."""
    for _ in range(draw(st.integers(1, most))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from((1, 2, 4, 8, 40, len(data))))
        kind = draw(st.integers(0, 5))
        before, part, after = data[:start], data[start : start + length], data[start + length :]
        if kind == 0 and part:
            part = bytes([part[0] ^ 1 << draw(st.integers(0, 7))]) + part[1:]
        elif kind == 1:
            part = draw(st.binary(max_size=8))
        elif kind == 2:
            part = draw(st.sampled_from(PIECES))
        elif kind == 3:
            part += part
        elif kind == 4:
            part = b""
        else:
            after = b""
        data = before + part + after
    return data


odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.floats(allow_subnormal=False),  # which the processor may be told to take for 0
    st.text(max_size=5),
    st.sampled_from(([], {}, [1], {"a": 1}, [[]], "1", "auto", "../..", "\ud800", "a" * 70000)),
)


@st.composite
def odd_tensors(draw: Callable) -> th.Tensor:
    """Tensors of any type, some of which hold no numbers or fewer than their shape says."""
    shape = draw(st.sampled_from(((), (0,), (1,), (3,), (2, 3), (32, 3, 3, 3), (624,), (5056,))))
    kinds = (th.float32, th.float64, th.int64, th.bool, th.uint8, th.complex64, th.bfloat16)
    tensor = th.ones(shape, dtype=draw(st.sampled_from(kinds)))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return tensor.to("meta")
    if kind == 1:
        return tensor.to_sparse()
    if kind == 2:
        return th.zeros(1).expand(draw(st.sampled_from(((2**20, 2**20), (2**50,)))))
    if kind == 3:
        return th.quantize_per_tensor(th.ones(shape), 0.1, 0, th.qint8)
    return tensor if kind == 4 else th.nn.Parameter(tensor.float())


@st.composite
def changed(draw: Callable, content: Any, odd: st.SearchStrategy = odd_values) -> Any:
    """Nested dictionaries and lists with one to three things in them changed, lost or added."""
    content = _copied(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            return _copied(draw(odd))
        owner, key = draw(st.sampled_from(places))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            del owner[key]
        elif kind == 1 and isinstance(owner, dict):
            owner[draw(st.one_of(st.text(max_size=3), odd_keys))] = owner.pop(key)
        elif kind == 2 and isinstance(owner, list):
            owner.append(owner[key])
        else:
            owner[key] = _copied(draw(odd))  # or a list could come to be in itself
    return content


odd_keys = st.sampled_from(("step", "loss", "", "0.9", "state", "updates"))


def _copied(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _copied(value) for key, value in content.items()}
    # Tuples stay: those of laughs are never through.
    return [_copied(value) for value in content] if isinstance(content, list) else content


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Where values stand: their containers, and their keys there; a container before its own."""
    pairs = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in pairs:
        yield content, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


# -- checkpoints ---------------------------------------------------------------------------------


def _records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _packed(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive whose checksums are right, whatever is in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, record in records.items():
            archive.writestr(name, record)
    return file.getvalue()


def _saved(content: Any) -> bytes:
    file = io.BytesIO()
    th.save(content, file)
    return file.getvalue()


GLOBALS = (
    b"cposix\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n", b"ctorch\nload\n",
    b"ctorch._utils\n_rebuild_qtensor\n", b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ctorch\nDoubleStorage\n", b"ctorch\nBoolStorage\n", b"ccollections\nCounter\n",
    b"ctorch\nSize\n", b"ctorch\nTensor\n", b"ctorch\ndevice\n",
)  # fmt: skip


@st.composite
def bad_pickles(draw: Callable, data: bytes) -> bytes:
    """A pickle that asks for other globals or other numbers, or is mangled."""
    kind = draw(st.integers(0, 2))
    if kind == 0:
        names = [part for part in data.split(b"\n") if b"ctorch" in part or b"ccoll" in part]
        start = data.index(draw(st.sampled_from(names)) if names else b"")
        start = max(start, data.find(b"c", start))
        end = data.find(b"\n", data.find(b"\n", start) + 1) + 1
        return data[:start] + draw(st.sampled_from(GLOBALS)) + data[end:]
    if kind == 1:
        at = [i for i, byte in enumerate(data[:-2]) if byte == ord("K")]
        start = draw(st.sampled_from(at)) if at else 0
        number = pickle.dumps(draw(st.sampled_from(NUMBERS)), protocol=2)[2:-1]
        return data[:start] + number + data[start + 2 :]
    return draw(mangled(data))


@st.composite
def bad_checkpoints(draw: Callable, files: dict[str, bytes]) -> tuple[str, bytes]:
    """One file of a checkpoint, and what stands in its place."""
    name = draw(st.sampled_from(sorted(files)))
    data, kind = files[name], draw(st.integers(0, 7))
    if kind == 0:
        return name, draw(mangled(data))
    if kind == 1:
        return name, files[draw(st.sampled_from(sorted(files)))]
    content = th.load(io.BytesIO(data), weights_only=True)
    if kind in (2, 3):
        return name, _saved(draw(changed(content, st.one_of(odd_values, odd_tensors()))))
    if kind == 4:
        return name, _saved(draw(changed(content, st.sampled_from(HARMFUL))))
    records = _records(data)
    record = draw(st.sampled_from([name for name in records if records[name]]))
    (main,) = (name for name in records if name.endswith("/data.pkl"))
    if kind == 5:
        records[main] = draw(bad_pickles(records[main]))
    elif kind == 6:
        other = _records(files[draw(st.sampled_from(sorted(files)))])
        records[record] = draw(st.sampled_from(list(other.values())))
    elif draw(st.booleans()):
        del records[record]
    else:
        records[record] = draw(mangled(records[record]))
    return name, _packed(records, draw(st.sampled_from((0, 0, 0, zipfile.ZIP_DEFLATED))))


FLAGS = {
    "image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1",
    "attention_resolutions": "", "diffusion_steps": 4, "noise_schedule": "cosine",
    "batch_size": 2, "lr": 1e-3, "ema_rate": "0.9", "save_interval": STEP, "log_interval": 1,
    "max_steps": STEP, "schedule_sampler": "loss-second-moment", "allow_slow_bf16": True,
}  # fmt: skip


class Run:
    """A real tiny run in a folder, with its loop, which loads a checkpoint again and again."""

    def __init__(self, folder: Path):
        images = write_images(folder / "images", 6, size=8, names="ab")
        self.folder = folder / "run"
        logger.configure(str(self.folder), ["csv", "json"])
        self.options = ImageTraining(
            **ImageTraining.defaults() | FLAGS | {"data_dir": str(images)}
        ).but(log_dir=str(self.folder))
        self.data = load_data(data_dir=images, batch_size=2, image_size=8)
        model = script_util.build_model(self.options)
        diffusion = script_util.build_diffusion(self.options)
        names = ("batch_size", "lr", "ema_rate", "log_interval", "save_interval", "max_steps")
        self.loop = TrainLoop(
            model=model,
            diffusion=diffusion,
            data=self.data,
            microbatch=-1,
            resume_checkpoint="",
            schedule_sampler=LossSecondMomentResampler(diffusion),
            flags=self.options.as_dict(),
            **{name: FLAGS[name] for name in names},
        )
        self.loop.run_loop()
        config = {"script": "image_train", "flags": self.options.as_dict()}
        config["data"] = self.data.summary()
        (self.folder / "config.json").write_text(json.dumps(config))
        paths = self.folder.glob(f"*{STEP:06d}.pt")
        self.checkpoint = {path.name: path.read_bytes() for path in paths}

    @contextlib.contextmanager
    def having(self, name: str, data: bytes) -> Iterator[Path]:
        """The run with another file in the place of one of its own."""
        path = self.folder / name
        before = path.read_bytes()
        path.write_bytes(data)
        try:
            yield path
        finally:
            path.write_bytes(before)

    def read_checkpoint(self, case: tuple[str, bytes]) -> None:
        name, data = case
        with self.having(name, data):
            path = self.folder / f"model{STEP:06d}.pt"
            training_command._check_whole(str(path))
            prefix = name.removesuffix(f"{STEP:06d}.pt")
            parts = [part for part in self.loop._parts() if part.prefix in ("model", prefix)]
            if prefix == "state":
                resumed = self.options.but(resume_checkpoint=str(path))
                training_command._check_against_checkpoint(resumed, self.data)
            checkpoints.load_parts(str(path), STEP, parts)
            if prefix in ("opt", "state"):  # what they hold is used later
                self.loop.run_step(*next(self.data))
                self.loop.step += 1
                self.loop._write_row_if_due()


# -- the log, config.json, arrays ----------------------------------------------------------------


@st.composite
def bad_logs(draw: Callable, data: bytes) -> bytes:
    """A table as people, spreadsheets and disks change it."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(mangled(data))
    table = [line.split(",") for line in data.decode().splitlines()]
    table = draw(changed(table, st.one_of(st.text(max_size=6), st.sampled_from(CELLS))))
    rows = [row if isinstance(row, list) else [row] for row in table]
    between = draw(st.sampled_from((",", ",", ",", ";", "\t", ", ")))
    ends = draw(st.sampled_from(("\n", "\n", "\r\n", "\r")))
    text = ends.join(between.join(map(str, row)) for row in rows) + draw(
        st.sampled_from(("", ends))
    )
    start = draw(st.sampled_from(("", "", "\ufeff")))
    return (start + text).encode("utf-8", "surrogateescape" if kind == 1 else "replace")


CELLS = (
    "nan",
    "inf",
    "-1",
    "1e999",
    "9" * 400,
    "0x1",
    "1_0",
    '"',
    '"a',
    "step",
    "=1+1",
    "\0",
    "1,5",
)


def show(run: Run, data: bytes) -> None:
    """Make what shows a run, unless that refuses it."""
    if zlib.crc32(data) % 8 == 0:  # it takes longer than all else
        with contextlib.suppress(InputError):
            save_workbook([read_run(run.folder)], run.folder / "compared.xlsx", {})
        with contextlib.suppress(InputError):
            export_workbook(run.folder / "progress.csv", run.folder / "results.xlsx")


def _log_lines(path: Path) -> list[list[str]]:
    return tables.read_csv(path).rows


def read_log(run: Run, data: bytes) -> None:
    """Continue it as a resumed run does; what was in it is in it still, or in what was cut off."""
    with run.having("progress.csv", data) as path:
        backup = path.with_name("progress.csv.bak")
        backup.unlink(missing_ok=True)
        show(run, data)
        tables.check_columns(path, ["step", "loss"], ["step", "loss"])
        before = _log_lines(path)
        cut = tables.cut_csv(path, 2)
        kept = _log_lines(path)
        assert len(kept) + cut == len(before)
        removed = _log_lines(backup) if cut else []
        assert sorted(kept + removed) == sorted(before)
        writer = CSVOutputFormat(path)
        writer.writekvs({"step": 2, "loss": 0.5})
        table = tables.read_csv(path)
        assert not table.torn
        assert [row[: len(kept[0])] for row in table.rows[:-1]] == kept if kept else True
        last = dict(zip(table.header, table.rows[-1], strict=True))
        assert (last["step"], last["loss"]) == ("2", "0.5")


def read_json_log(run: Run, data: bytes) -> None:
    with run.having("progress.json", data) as path:
        tables.cut_json(path, 2)
        JSONOutputFormat(path).writekvs({"step": 2})
        assert json.loads(path.read_bytes().splitlines()[-1]) == {"step": 2}


@st.composite
def bad_json(draw: Callable, data: bytes) -> bytes:
    kind = draw(st.integers(0, 7))
    if kind == 0:
        return draw(mangled(data))
    if kind == 1:
        depth = draw(st.sampled_from((10, 990, 2000, 10**5)))
        return draw(st.sampled_from((b"[", b'{"flags":', b"[]" * 9 + b"["))) * depth
    content = draw(changed(json.loads(data)))
    return json.dumps(content).encode()


def read_config(run: Run, data: bytes) -> None:
    """As a script that samples does, and those that show runs."""
    with run.having("config.json", data):
        show(run, data)
        before = sys.argv
        sys.argv = ["image_sample.py", "--model_path", str(run.folder)]
        try:
            _, trained = parse_for_model(ImageSampling, "")
            assert trained.num_classes >= 0
            assert all(isinstance(name, str) for name in trained.names)
        finally:
            sys.argv = before


def _arrays() -> bytes:
    file = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    np.savez(file, images, np.array([0, 2, 1]))
    return file.getvalue()


HEADERS = (
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 4, 4, 3), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (100000000, 4, 4, 3), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4, 3), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 4, 4, 3), }",
    "{'descr': '|u1', 'fortran_order': True, 'shape': (3, 4, 4, 3), }",
    "{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (3, 4, 4, 3), }",
    "{'descr': '|V0', 'fortran_order': False, 'shape': (3, 4, 4, 3), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }",
    "__import__('os').system('touch harm')",
    "{'descr': '|u1', 'fortran_order': False, 'shape': ()}",
    "(" * 5000,
)


@st.composite
def bad_arrays(draw: Callable, data: bytes) -> bytes:
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(mangled(data))
    records = _records(data)
    name = draw(st.sampled_from(sorted(records)))
    if kind == 1:
        records[name] = draw(mangled(records[name]))
    elif kind == 2:
        header = draw(st.sampled_from(HEADERS)).encode() + b"\n"
        records[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(200)
    elif kind == 3:
        value = np.array([draw(st.sampled_from(HARMFUL))], dtype=object)
        file = io.BytesIO()
        with contextlib.suppress(Exception):
            np.save(file, value)
        records[name] = file.getvalue()
    else:
        records[draw(st.sampled_from(("arr_0.npy", "../harm.npy", "arr_0")))] = records.pop(name)
    return _packed(records, draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))))


# -- evaluations, and the networks that judge ----------------------------------------------------


def evaluate(run: Run) -> dict[str, bytes]:
    """Put evaluations of a model and of its samples into a run's folder; the files to be read."""
    diffusion = run.loop.diffusion
    table = BpdTable(diffusion)
    x_start = next(run.data)[0]
    table.add(estimate_bpd(diffusion, lambda x, t: x, x_start, 4, noise=ImageNoise(0, range(2))))
    features = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    kernel = kernel_distance(features[0], Reference(features[1]))
    line = Line("Title", Figure(0.5, 0.1), *[Figure(np.nan, np.nan)] * 2)
    about = {"features": "Tiny", "num_samples": 6, "num_reference": 6}
    verdict = Verdict(dict.fromkeys(FIGURES_OF_ALL, line), about, kernel, None)
    for name in ("nll", "judged"):
        (run.folder / name).mkdir()
    save_table(str(run.folder / "nll"), table, {"names of images, sha256": "0a", "seed": 0})
    save_verdict(str(run.folder / "judged"), verdict, {})
    names = ("nll/bits_per_dim.json", "nll/bits_per_dim.csv", "nll/bits_per_dim_images.csv")
    names += ("judged/evaluation.json", "judged/evaluation.npz")
    return {name: (run.folder / name).read_bytes() for name in names}


@st.composite
def bad_evaluations(draw: Callable, files: dict[str, bytes]) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(files)))
    change = {".json": bad_json, ".csv": bad_logs, ".npz": bad_arrays}[Path(name).suffix]
    return name, draw(change(files[name]))


def read_evaluation(run: Run, whole: ComparedRun, case: tuple[str, bytes]) -> None:
    """Compare the run with what it was, as a workbook."""
    with run.having(*case):
        save_workbook([whole, read_run(run.folder)], run.folder / "compared.xlsx", {})


def make_network() -> th.nn.Module:
    return th.nn.Sequential(th.nn.Conv2d(3, 4, 3), th.nn.BatchNorm2d(4))


def read_network(folder: Path, case: tuple[str, bytes]) -> None:
    path = folder / "network.pt"
    path.write_bytes(case[1])
    images = th.ones(1, 3, 4, 4)
    assert load_network(make_network, str(path))(images).dtype == th.float32


# -- archives ------------------------------------------------------------------------------------


PICKLES = (
    b"\x80\x02r\xff\xff\xff\x0f.",  # a memo of 2 ** 28 places
    b"\x80\x02" + b"(" * 5000 + b".",
    b"\x80\x04\x95" + b"\xff" * 8 + b".",
    b"\x80\x04\x8e" + b"\xff\xff\xff\xff\xff\xff\xff\x0f.",
    b"\x80\x02cposix\nsystem\nX\x0a\x00\x00\x00touch harm\x85R.",
    b"\x80\x02}(C\x06labelsq\x00",
    b"\x80\x02\x82\x01.",
    b"P1\n.",
)


@st.composite
def bad_archives(draw: Callable, _: Any = None) -> bytes:
    members = cifar_members(draw(st.sampled_from(("bin", "py"))), count=2)
    name = draw(st.sampled_from(sorted(members)))
    kind = draw(st.integers(0, 8))
    kinds: dict[str, bytes] = {}
    if kind == 0:
        members[name] = draw(mangled(members[name]))
    elif kind == 1:
        members[name] = draw(st.sampled_from(PICKLES))
    elif kind == 2 and "-py" in name:
        batch = {b"labels": [1, 2], b"data": np.zeros((2, 3072), np.uint8)}
        odd = st.one_of(odd_values, st.sampled_from(HARMFUL), st.builds(laughs))
        members[name] = pickle.dumps(draw(changed(batch, odd)), protocol=2)
    elif kind == 3:
        types = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
        kinds[name] = draw(st.sampled_from((*types, tarfile.CHRTYPE)))
    elif kind == 4:
        members[draw(st.sampled_from(("../../harm", "/harm", "data_batch_1.bin/x", "")))] = b"harm"
    elif kind == 5:
        del members[name]
    tar = tar_of(members, kinds)
    if kind == 6:
        tar = draw(mangled(tar))
    elif kind == 7:  # a header's field, and its checksum
        tar = _with_header(tar, draw(st.integers(0, 5)), draw)
    packed = gzip.compress(tar, 1) if draw(st.booleans()) else tar
    return draw(mangled(packed)) if kind == 8 else packed


def _with_header(tar: bytes, number: int, draw: Callable) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        start = archive.getmembers()[number].offset
    header = bytearray(tar[start : start + 512])
    at, size = draw(st.sampled_from(((0, 100), (124, 12), (156, 1), (157, 100), (257, 8))))
    big = (b"77777777777", b"\x80" + b"\0" * 6 + b"\x10\0\0\0\0", b"x", b"g", b"L", b"S", b"-1")
    value = draw(st.one_of(st.sampled_from(big), st.binary(max_size=size)))[:size]
    header[at : at + size] = value.ljust(size, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return tar[:start] + bytes(header) + tar[start + 512 :]


# -- pictures ------------------------------------------------------------------------------------

KINDS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("P", "L"),
    "BMP": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
}


@functools.cache
def _pictures() -> dict[str, bytes]:
    """Pictures of all formats and modes, some turned, transparent or of several frames."""
    made = {}
    for kind, modes in KINDS.items():
        for mode in modes:
            pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
            if mode == "I;16":
                image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
            else:
                image = Image.fromarray(pixels).convert(mode)
            more: dict[str, Any] = {}
            if kind in ("JPEG", "PNG", "WEBP"):
                exif = image.getexif()
                exif[0x0112] = 6
                more["exif"] = exif
            if mode == "P" and kind in ("PNG", "GIF"):
                more["transparency"] = 3
            if kind in ("GIF", "WEBP"):
                more |= {"save_all": True, "append_images": [image.rotate(90)]}
            file = io.BytesIO()
            image.save(file, format=kind, **more)
            made[f"{kind} {mode}"] = file.getvalue()
    return made


@st.composite
def bad_pictures(draw: Callable, _: Any = None) -> bytes:
    name = draw(st.sampled_from(sorted(_pictures())))
    data = _pictures()[name]
    kind = draw(st.integers(0, 3))
    if kind == 0 and name.startswith("PNG"):
        return _with_chunk(data, draw)
    if kind == 1:  # the numbers of a header
        at = draw(st.integers(0, min(60, len(data) - 4)))
        size = draw(st.sampled_from((1, 2, 4)))
        number = draw(st.sampled_from(NUMBERS)) % 256**size
        order = draw(st.sampled_from(("little", "big")))
        return data[:at] + number.to_bytes(size, order) + data[at + size :]
    return draw(mangled(data))


def _with_chunk(data: bytes, draw: Callable) -> bytes:
    """A PNG of which one chunk is changed, with the right checksum."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = draw(st.integers(0, len(chunks) - 1))
    kind, content = chunks[number]
    if kind == b"IHDR" and draw(st.booleans()):
        sizes = [draw(st.sampled_from((0, 1, 9, 2**13, 2**16, 2**31 - 1))) for _ in range(2)]
        content = struct.pack(">II", *sizes) + content[8:]
    else:
        content = draw(mangled(content)) if content else b"\1"
    others = (kind, b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"PLTE", b"IDAT")
    chunks[number] = (draw(st.sampled_from(others)), content)
    parts = (
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )
    return data[:8] + b"".join(parts)


def read_pictures(folder: Path, decode: Callable, data: bytes) -> None:
    path = folder / "picture.png"
    path.write_bytes(data)
    for channels in (1, 3, 4):
        for read, shape in (
            (lambda c=channels: read_square(path, c), (8, 8, channels)),
            (lambda c=channels: read_picture(str(path), c, 3, 64), None),
        ):
            with contextlib.suppress(InputError):
                pixels = read()
                assert pixels.dtype == np.uint8
                assert shape in (None, pixels.shape)
    assert decode(data, 8, "a database").size == (8, 8)


def read_square(path: Path, channels: int) -> np.ndarray:
    with open_image(str(path)) as image:
        return squared(image, 8, channels)


# -- images in one file --------------------------------------------------------------------------


@st.composite
def bad_zips(draw: Callable, _: Any = None) -> bytes:
    """Archives of pictures, of which one thing is wrong."""
    names = ("cat/1.png", "dog/2.jpg", "dog/3.gif")
    pictures = [_pictures()[name] for name in ("PNG RGB", "JPEG RGB", "GIF P")]
    records = dict(zip(names, pictures, strict=True))
    name = draw(st.sampled_from(names))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        records[name] = draw(mangled(records[name]))
    elif kind == 1:
        odd = ("../harm.png", "/harm.png", "a/../../harm.png", "c:\\harm.png", ".png", "x\\y.png")
        records[draw(st.sampled_from(odd))] = records.pop(name)
    elif kind == 2:
        labels = [[name, number] for number, name in enumerate(names)]
        content = draw(changed({"labels": labels}))
        with contextlib.suppress(TypeError, ValueError):
            records["dataset.json"] = json.dumps(content).encode()
    elif kind == 3:
        records[name] = bytes(draw(st.sampled_from((0, 1, 2**26))))  # of which little is packed
    data = _packed(
        records,
        draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))),
    )
    if kind == 4:  # the numbers of a header
        start = draw(st.sampled_from((b"PK\1\2", b"PK\3\4", b"PK\5\6")))
        at = data.index(start) + draw(st.integers(4, 42))
        size = draw(st.sampled_from((1, 2, 4)))
        number = draw(st.sampled_from(NUMBERS)) % 256**size
        return data[:at] + number.to_bytes(size, "little") + data[at + size :]
    return draw(mangled(data)) if kind == 5 else data


@functools.cache
def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": data, "path": None} for data in list(_pictures().values())[:6]]
    table = pa.table({"image": cells, "label": [0, 1, 2, 0, 1, 2]})
    features = {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
    about = json.dumps({"info": {"features": features}})
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), file)
    return file.getvalue()


@st.composite
def bad_tables(draw: Callable, _: Any = None) -> bytes:
    data = _parquet()
    if draw(st.booleans()):  # in the footer, which says where everything is
        (length,) = struct.unpack("<I", data[-8:-4])
        footer = draw(mangled(data[-8 - length : -8]))
        return data[: -8 - length] + footer + struct.pack("<I", len(footer)) + data[-4:]
    return draw(mangled(data))


def read_images(path: Path, data: bytes) -> None:
    """Open images of any kind, and read the first."""
    path.write_bytes(data)
    source = open_source(str(path))
    for labels in filter(None, [source.labels]):
        assert labels.numbers.shape == (len(source),)
        assert labels.numbers.max() < len(labels.classes)
    for index in range(min(3, len(source))):
        with contextlib.suppress(InputError):
            assert source.read(index, 8).shape == (8, 8, 3)


# -- subjects ------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """A kind of file: changed ones, and what reads them, or raises an ``InputError``."""

    cases: st.SearchStrategy
    read: Callable[[Any], object]


NAMES = (
    "checkpoints",
    "progress.csv",
    "progress.json",
    "config.json",
    "samples",
    "archives",
    "pictures",
    "evaluations",
    "networks",
    "arrays",
    "zips",
    *(["tables"] if importlib.util.find_spec("pyarrow") else []),
)


def subjects(folder: Path) -> dict[str, Subject]:
    """All kinds of files that the package, its scripts and its datasets read."""
    run = Run(folder)
    for place in ("scripts", "datasets"):
        sys.path.append(str(PROJECT / place))
    import lsun_bedroom
    import super_res_sample

    archive, samples = folder / "archive", folder / "samples.npz"
    options = super_res_sample.SuperResSampling(
        **super_res_sample.SuperResSampling.defaults()
        | {"base_samples": str(samples), "small_size": 4, "large_size": 8, "channel_mult": "1"}
        | {"attention_resolutions": "", "class_cond": True, "num_channels": 32}
    )
    trained = super_res_sample.Trained({}, False, 3)

    def read_batches(data: bytes) -> None:
        archive.write_bytes(data)
        for pixels, labels in read_archive(str(archive), ("train", "test")).values():
            assert pixels.shape[1:] == (32, 32, 3)
            assert pixels.dtype == np.uint8
            assert labels.shape == (len(pixels),)

    def read_samples(data: bytes) -> None:
        samples.write_bytes(data)
        images, classes = super_res_sample.load_base_samples(options, trained)
        assert images.shape[1:] == (3, 4, 4)
        assert images.abs().max() <= 1
        assert len(classes) == len(images)

    evaluations = evaluate(run)
    whole = read_run(run.folder)._replace(name="whole")
    network = {"network.pt": _saved(make_network().state_dict())}
    text = {name: (run.folder / name).read_bytes() for name in ("progress.csv", "progress.json")}
    config = (run.folder / "config.json").read_bytes()
    found = (
        Subject(bad_checkpoints(run.checkpoint), run.read_checkpoint),
        Subject(bad_logs(text["progress.csv"]), functools.partial(read_log, run)),
        Subject(
            st.one_of(mangled(text["progress.json"]), bad_json(b'{"step": 1, "loss": [0.5]}')),
            functools.partial(read_json_log, run),
        ),
        Subject(bad_json(config), functools.partial(read_config, run)),
        Subject(bad_arrays(_arrays()), read_samples),
        Subject(bad_archives(), read_batches),
        Subject(bad_pictures(), functools.partial(read_pictures, folder, lsun_bedroom.decode)),
        Subject(bad_evaluations(evaluations), functools.partial(read_evaluation, run, whole)),
        Subject(bad_checkpoints(network), functools.partial(read_network, folder)),
        Subject(bad_arrays(_arrays()), functools.partial(read_images, folder / "images.npz")),
        Subject(bad_zips(), functools.partial(read_images, folder / "images.zip")),
        Subject(bad_tables(), functools.partial(read_images, folder / "images.parquet")),
    )
    return dict(zip(NAMES, found, strict=False))  # the last one needs pyarrow


def is_read(subject: Subject, case: Any, folder: Path) -> bool:
    """Whether a case is read; if not, it is refused in one line. All else is a failure."""
    with watching(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            subject.read(case)
        except InputError as error:
            assert not isinstance(error.__context__, MemoryError), "it takes too much memory"
            return False
    return True
