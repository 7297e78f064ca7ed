"""torch.compile, and what happens where it cannot."""

import shutil

import pytest
import torch as th

from improved_diffusion.system import compiling


@pytest.fixture
def model():
    th.manual_seed(0)
    return th.nn.Sequential(th.nn.Linear(4, 3), th.nn.SiLU())


@pytest.mark.slow
def test_without_a_compiler_the_model_runs_as_it_is(model):
    said = []
    compiled = compiling.Compiled(model, said.append)
    x = th.randn(2, 4)
    missing = {"cpp.cxx": (None, "/no/such/compiler"), "force_disable_caches": True}
    with th._inductor.config.patch(missing):
        assert th.equal(compiled(x), model(x))
    assert th.equal(compiled(x), model(x))
    (line,) = said
    assert line.startswith("--compile is left out, the model runs as it is: ")
    assert "/no/such/compiler" in line


def test_an_error_without_a_message_is_told_by_its_kind(model, monkeypatch):
    def compile(_):
        def fail(*_):
            raise RuntimeError

        return fail

    monkeypatch.setattr(th, "compile", compile)
    said = []
    compiling.Compiled(model, said.append)(th.randn(2, 4))
    assert said == ["--compile is left out, the model runs as it is: RuntimeError"]


@pytest.mark.slow
def test_an_error_of_the_model_itself_is_not_hidden(model):
    with pytest.raises(RuntimeError):
        compiling.Compiled(model, print)(th.randn(2, 5))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.slow
def test_the_compiled_model_computes_the_same_and_says_how_long_it_took(model):
    said = []
    compiled = compiling.Compiled(model, said.append)
    x = th.randn(2, 4)
    th.testing.assert_close(compiled(x), model(x))
    assert len(said) == 1
    assert said[0].startswith("Compiled the model in ")
    compiled(x).sum().backward()
    assert model[0].weight.grad is not None
