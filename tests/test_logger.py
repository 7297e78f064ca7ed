import sys

import numpy as np
import pytest
import torch
from tiny_runs import rows_of

from improved_diffusion import logger
from improved_diffusion.errors import InputError


@pytest.fixture(autouse=True)
def fresh_logger(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(logger.Logger, "CURRENT", None)
    monkeypatch.setattr(logger.Logger, "DEFAULT", None)


def log_line(**values):
    logger.logkvs(values)
    return logger.dumpkvs()


def test_dumpkvs_returns_what_it_wrote_and_starts_anew(tmp_path):
    logger.configure(dir=tmp_path / "run", format_strs=["csv"])
    logger.logkv("step", 3)
    logger.logkv_mean("loss", 1.0)
    logger.logkv_mean("loss", 2.0)
    assert logger.getkvs() == {"step": 3, "loss": 1.5}
    assert logger.dumpkvs() == {"step": 3, "loss": 1.5}
    assert logger.getkvs() == {}
    logger.logkv_mean("loss", 7.0)
    assert logger.dumpkvs() == {"loss": 7.0}
    assert rows_of(tmp_path / "run/progress.csv")[0] == {"step": "3", "loss": "1.5"}


def test_running_mean_is_the_published_recurrence(tmp_path):
    logger.configure(dir=tmp_path, format_strs=[])
    mean = 0.0
    for count, value in enumerate(np.random.RandomState(0).uniform(0, 1, 200).tolist()):
        mean = mean * count / (count + 1) + value / (count + 1)
        logger.logkv_mean("x", value)
        assert logger.getkvs()["x"] == mean


def test_an_empty_line_is_not_written(tmp_path, capsys):
    logger.configure(dir=tmp_path, format_strs=["stdout", "csv", "json"])
    capsys.readouterr()
    assert logger.dumpkvs() == {}
    assert capsys.readouterr().out == ""
    assert (tmp_path / "progress.csv").read_bytes() == b""
    assert (tmp_path / "progress.json").read_bytes() == b""


def test_scalars_of_numpy_and_torch_become_plain_numbers(tmp_path):
    logger.configure(dir=tmp_path, format_strs=["csv", "json"])
    line = log_line(a=np.float32(0.5), b=torch.tensor(2), c=np.float64(0.1), d=np.int64(7))
    assert line == {"a": 0.5, "b": 2, "c": 0.1, "d": 7}
    assert {type(value) for value in line.values()} == {int, float}
    assert (tmp_path / "progress.csv").read_text() == "a,b,c,d\n0.5,2,0.1,7\n"


def test_default_directory_and_formats(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path / "from env"))
    logger.configure()
    assert logger.get_dir() == str(tmp_path / "from env")
    names = sorted(path.name for path in (tmp_path / "from env").iterdir())
    assert names == ["log.txt", "progress.csv"]
    assert str(tmp_path / "from env") in capsys.readouterr().out
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "json,")
    logger.configure(dir=str(tmp_path / "b"))
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["progress.json"]


def test_use_without_configure_speaks_on_stdout(capsys):
    logger.log("hello", 3)
    assert "hello 3\n" in capsys.readouterr().out
    assert "openai-" in logger.get_dir()
    assert logger.Logger.CURRENT is logger.Logger.DEFAULT


@pytest.mark.parametrize("variable", ["RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"])
def test_other_ranks_write_only_their_own_text(tmp_path, monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "2")
    if variable == "RANK":
        monkeypatch.setenv("WORLD_SIZE", "3")
    logger.configure(dir=tmp_path / "run")
    log_line(x=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log-rank002.txt"]
    assert capsys.readouterr().out == ""


def test_a_rank_among_no_others_is_somebody_elses(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "x")
    logger.configure(dir=tmp_path, format_strs=["csv"])
    log_line(x=1)
    assert [path.name for path in tmp_path.iterdir()] == ["progress.csv"]


def test_levels(tmp_path, capsys):
    logger.configure(dir=tmp_path, format_strs=["stdout"])
    capsys.readouterr()
    logger.debug("a")
    logger.info("b")
    logger.set_level(logger.WARN)
    logger.info("c")
    logger.warn("d")
    logger.error("e")
    logger.set_level(logger.DISABLED)
    logger.error("f")
    assert capsys.readouterr().out == "b\nd\ne\n"


def test_scoped_configure_restores_even_after_an_error(tmp_path):
    logger.configure(dir=tmp_path / "outer", format_strs=["csv"])
    logger.logkv("x", 1)

    def fail_inside():
        with logger.scoped_configure(dir=tmp_path / "inner", format_strs=["csv"]):
            log_line(y=2)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert logger.get_dir() == str(tmp_path / "outer")
    assert logger.dumpkvs() == {"x": 1}
    assert rows_of(tmp_path / "inner/progress.csv") == [{"y": "2"}]


def test_reset_goes_back_to_the_default(tmp_path):
    logger.log("make the default")
    default = logger.Logger.CURRENT
    logger.configure(dir=tmp_path, format_strs=["log"])
    logger.reset()
    assert logger.Logger.CURRENT is default


def test_profile_adds_up_seconds(tmp_path):
    logger.configure(dir=tmp_path, format_strs=[])

    @logger.profile("work")
    def work(x, *, y):
        return x + y

    assert work(1, y=2) == 3
    once = logger.getkvs()["wait_work"]
    with logger.profile_kv("work"):
        pass
    assert logger.getkvs()["wait_work"] > once > 0
    assert work.__name__ == "work"


def test_comm_averages_by_weight_and_leaves_text_alone(tmp_path):
    class WithAnotherProcess:
        def weighted_mean(self, values):
            assert values == {"loss": (2.0, 3)}
            mean, count = values["loss"]
            return {"loss": (mean * count + 10.0 * 1) / (count + 1), "theirs": 5.0}

    logger.configure(dir=tmp_path, format_strs=["csv"], comm=WithAnotherProcess())
    for value in (1.0, 2.0, 3.0):
        logger.logkv_mean("loss", value)
    logger.logkv("name", "text")
    assert logger.dumpkvs() == {"loss": 4.0, "name": "text", "theirs": 5.0}


def test_state_continues_a_line_exactly(tmp_path):
    values = np.random.RandomState(1).uniform(0, 1, 37).tolist()
    whole = logger.Logger(None, [])
    first = logger.Logger(None, [])
    for log in (whole, first):
        for value in values[:20]:
            log.logkv_mean("loss", value)
        log.logkv("step", 20)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = logger.Logger(None, [])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for log in (whole, second):
        for value in values[20:]:
            log.logkv_mean("loss", value)
    assert second.state_dict() == whole.state_dict()
    assert second.dumpkvs() == whole.dumpkvs()


def test_state_is_a_copy():
    log = logger.Logger(None, [])
    log.logkv_mean("x", 1.0)
    state = log.state_dict()
    log.logkv_mean("x", 3.0)
    assert state == {"values": {"x": 1.0}, "counts": {"x": 1}}


@pytest.mark.parametrize("dir", ["file/run", "file"])
def test_unwritable_directory_is_one_line_that_names_it(tmp_path, dir):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=str(tmp_path / dir)) as caught:
        logger.configure(dir=tmp_path / dir)
    assert "\n" not in str(caught.value)


def test_bad_formats_and_urls(tmp_path):
    with pytest.raises(InputError, match=r"'xml'.*stdout"):
        logger.configure(dir=tmp_path, format_strs=["xml"])
    with pytest.raises(InputError, match="DIFFUSION_BLOB_LOGDIR"):
        logger.configure(dir="gs://bucket/run")


def test_table(tmp_path, capsys):
    logger.configure(dir=tmp_path, format_strs=["stdout"])
    capsys.readouterr()
    log_line(Zeta=0.00012345, alpha=10, **{"k" * 40: "v" * 40})
    assert capsys.readouterr().out == (
        "-------------------------------------------------------------------\n"
        "| alpha                          | 10                             |\n"
        "| kkkkkkkkkkkkkkkkkkkkkkkkkkk... | vvvvvvvvvvvvvvvvvvvvvvvvvvv... |\n"
        "| Zeta                           | 0.000123                       |\n"
        "-------------------------------------------------------------------\n"
    )


def test_tensorboard_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        logger.configure(dir=tmp_path, format_strs=["tensorboard"])


def test_a_format_named_twice_writes_once(tmp_path):
    with logger.scoped_configure(dir=tmp_path, format_strs=["csv", " csv"]):
        for step in range(2):
            logger.logkv("step", step)
            logger.dumpkvs()
    assert (tmp_path / "progress.csv").read_text() == "step\n0\n1\n"
