"""``torch.compile`` that falls back to eager mode where nothing can be compiled."""

import time
from collections.abc import Callable
from typing import Any

import torch as th


class Compiled:
    """A model behind ``torch.compile``, called as the model itself.

    The first call compiles and says how long that took. Where it fails (most often for want of a
    C++ compiler), one line says so and the model runs as it is.

    :param log: takes such a line.
    """

    def __init__(self, model: th.nn.Module, log: Callable[[str], object]):
        self.model = model
        self.log = log
        self._call: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> th.Tensor:
        if self._call is None:
            return self._first_call(*args, **kwargs)
        return self._call(*args, **kwargs)

    def _first_call(self, *args: Any, **kwargs: Any) -> th.Tensor:
        started = time.perf_counter()
        compiled = th.compile(self.model)
        try:
            output = compiled(*args, **kwargs)
        except (th._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
            cause = getattr(error, "inner_exception", error)  # what Dynamo says of it tells less
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0][:160]
            self.log(f"--compile is left out, the model runs as it is: {reason}")
            self._call = self.model
            return self.model(*args, **kwargs)
        self.log(f"Compiled the model in {time.perf_counter() - started:.1f} s")
        self._call = compiled
        return output
