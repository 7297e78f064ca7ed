import errno
import json
import os
import socket
from pathlib import Path

import pytest
import torch as th
from in_process import run_program

from improved_diffusion import dist_util, errors
from improved_diffusion.errors import DivergedError, InputError

GROUP_OF_ONE = """
import json, os
import torch as th
import torch.distributed as dist
from improved_diffusion import dist_util

dist_util.setup_dist()
dist_util.setup_dist()
x = th.ones(2)
dist.all_reduce(x)
parts = [th.zeros(2)]
dist.all_gather(parts, x)
dist.barrier()
dist_util.sync_params([x])
print(json.dumps({
    "rank": dist.get_rank(),
    "world": dist.get_world_size(),
    "sum": x.tolist(),
    "gathered": parts[0].tolist(),
    "variables": sorted(name for name in os.environ if name.endswith("SOCKET_IFNAME")),
}))
"""


WITHOUT_HASH_STORE = "import torch.distributed\ndel torch.distributed.HashStore\n"  # as on Windows


@pytest.mark.parametrize("first", ["", WITHOUT_HASH_STORE], ids=["here", "on_windows"])
@pytest.mark.slow
def test_setup_dist_makes_a_group_of_one(first, tmp_path):
    """It leaves neither files nor variables of the environment behind."""
    said = json.loads(run_program(first + GROUP_OF_ONE, TMPDIR=str(tmp_path)))
    assert said == {"rank": 0, "world": 1, "sum": [1, 1], "gathered": [1, 1], "variables": []}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(socket, "if_nameindex"), reason="interfaces have no names here")
def test_a_group_of_one_opens_no_port_to_the_network(monkeypatch):
    seen = {}

    def init_process_group(backend, store, **_):
        seen.update(os.environ, store=type(store).__name__)

    monkeypatch.setattr(dist_util.dist, "init_process_group", init_process_group)
    dist_util.setup_dist()
    assert seen["GLOO_SOCKET_IFNAME"] in ("lo", "lo0")
    assert seen["store"] in ("HashStore", "FileStore"), "others listen"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    dist_util.setup_dist()
    assert seen["GLOO_SOCKET_IFNAME"] == "eth7"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc to count threads in")
@pytest.mark.slow
def test_the_group_leaves_no_threads_to_abort_a_process_that_ends():
    """DDP imports modules that keep the group, unless they were imported before it was made."""
    program = (
        "import atexit, os, time, torch as th\n"
        "from improved_diffusion import dist_util\n"
        "def threads():\n"
        "    return len(os.listdir('/proc/self/task'))\n"
        "def say_left():\n"
        "    deadline = time.monotonic() + 5\n"  # the kernel lists one a moment longer than it runs
        "    while threads() > before and time.monotonic() < deadline:\n"
        "        time.sleep(0.01)\n"
        "    print(threads() - before)\n"
        "atexit.register(say_left)\n"  # the first registered runs last
        "th.set_num_threads(1)\n"
        "before = threads()\n"
        "dist_util.setup_dist()\n"
        "print(threads() - before > 0)\n"
        "th.nn.parallel.DistributedDataParallel(th.nn.Linear(3, 3))(th.ones(3)).sum().backward()\n"
    )
    assert run_program(program).split() == ["True", "0"]


def test_a_line_is_averaged_over_the_ranks_that_have_it(monkeypatch):
    other = {"loss": (1.0, 3), "late": (5.0, 2)}

    def all_gather_object(lines, mine):
        lines[:] = [mine, other]

    monkeypatch.setattr(dist_util, "world_size", lambda: 2)
    monkeypatch.setattr(dist_util.dist, "all_gather_object", all_gather_object)
    averaged = dist_util.RankAverager().weighted_mean({"loss": (0.0, 1)})
    assert averaged == {"late": 5.0, "loss": 0.75}


@pytest.mark.parametrize("ranks", [2, 3, 6, 7])
def test_what_all_ranks_say_alike_stays_exact(ranks, monkeypatch):
    monkeypatch.setattr(dist_util, "all_gather", lambda mine: [mine] * ranks)
    for step in range(200):
        averaged = dist_util.RankAverager().weighted_mean({"step": (float(step), 1)})
        assert averaged == {"step": step}


def test_everything_works_without_a_group():
    x = th.tensor([1.0, 2.0])
    dist_util.sync_params([x])
    assert (dist_util.rank(), dist_util.world_size()) == (0, 1)
    assert dist_util.all_gather("mine") == ["mine"]
    assert th.equal(dist_util.mean_over_ranks(x), x)
    assert dist_util.any_rank(15) == 15


WITHOUT_DISTRIBUTED = """
import os, sys, types, torch
torch.distributed = sys.modules["torch.distributed"] = types.ModuleType("torch.distributed")
torch.distributed.is_available = lambda: False

from improved_diffusion import dist_util
from improved_diffusion.errors import InputError
os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
dist_util.setup_dist()
dist_util.sync_params([torch.ones(2)])
with dist_util.agreeing():
    print(dist_util.rank(), dist_util.world_size(), dist_util.any_rank(15))
os.environ["WORLD_SIZE"] = "2"
try:
    dist_util.setup_dist()
except InputError as error:
    print(error)
dist_util._leave()
"""


@pytest.mark.slow
def test_a_pytorch_without_distributed_computes_alone():
    alone, complaint = run_program(WITHOUT_DISTRIBUTED).splitlines()
    assert alone == "0 1 15"
    assert "has no torch.distributed" in complaint


@pytest.fixture
def machine(monkeypatch):
    """Pretends that PyTorch finds some devices; forgets the choice of one afterwards."""
    monkeypatch.setattr(dist_util, "_device", "auto")

    def has(*devices):
        monkeypatch.setattr(th.cuda, "is_available", lambda: "cuda" in devices)
        monkeypatch.setattr(th.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(th.backends.mps, "is_available", lambda: "mps" in devices)

    return has


@pytest.mark.parametrize(
    ("devices", "name", "device"),
    [
        ((), "auto", "cpu"),
        (("mps",), "auto", "cpu"),
        (("mps",), "mps", "mps"),
        (("cuda",), "auto", "cuda:0"),
        (("cuda",), "cuda", "cuda:0"),
        (("cuda",), "cpu", "cpu"),
    ],
)
def test_the_device_is_the_chosen_one(devices, name, device, machine):
    machine(*devices)
    assert str(dist_util.find_device(name)) == device
    dist_util.use_device(name)
    assert str(dist_util.dev()) == device


def test_each_rank_has_its_gpu(machine, monkeypatch):
    machine("cuda")
    monkeypatch.setattr(dist_util, "rank", lambda: 3)
    assert dist_util.dev() == th.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert dist_util.dev() == th.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="process 2 finds no GPU of its own, of 2 here"):
        dist_util.dev()


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu"])
def test_a_device_that_is_not_there_is_said(name, machine):
    machine()
    with pytest.raises(InputError, match=f"device '?{name}"):
        dist_util.use_device(name)
    assert dist_util.dev() == th.device("cpu")


@pytest.mark.parametrize(
    ("devices", "nccl", "backend"),
    [((), False, "gloo"), (("cuda",), True, "nccl"), (("cuda",), False, "gloo")],
)
def test_the_backend_is_that_of_the_device(devices, nccl, backend, machine, monkeypatch):
    made = []
    machine(*devices)
    monkeypatch.setattr(th.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist_util.dist, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(dist_util.dist, "init_process_group", lambda *a, **_: made.append(*a))
    dist_util.setup_dist()
    assert made == [backend]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [InputError("no flag"), DivergedError("no hope"), FULL])
def test_of_an_error_that_all_ranks_raise_rank_0_tells(error, monkeypatch):
    monkeypatch.setattr(dist_util, "_leaving_together", False)
    monkeypatch.setattr(errors, "told_by_rank_0", False)
    for rank, is_told in ((0, False), (1, True)):
        monkeypatch.setattr(dist_util, "rank", lambda rank=rank: rank)
        assert dist_util.of_all_ranks(error) is error
        assert errors.told_by_rank_0 == is_told


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "start them with torchrun"),
        ({"PMI_SIZE": "4"}, "start them with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, r"cannot join the other processes \(.*MASTER_ADDR"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(variables, said, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said):
        dist_util.setup_dist()
