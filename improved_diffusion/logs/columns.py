"""The columns of a training's log: their order, and where each is shown.

A new column needs a line here and the place that measures it. Columns that are not listed here are
logged all the same; in the workbook they stand behind these.
"""

from collections.abc import Iterable
from typing import NamedTuple

IN_EVERY_LOG = ("step", "samples", "loss", "grad_norm")  # of whatever version of the code
KID = "KID of samples (EfficientNet-Lite0)"
QUARTERS = ("q0 (least noise)", "q1", "q2", "q3 (most noise)")  # of the timesteps


class Column(NamedTuple):
    """One column of the log.

    ``chart`` and ``unit`` are the titles of the run's chart that draws it, and of that chart's y
    axis; ``legend`` names the line where columns share a chart. ``panel`` is the title of the panel
    that compares it between runs. An empty string means none.
    """

    name: str
    on_console: bool = False
    chart: str = ""
    unit: str = ""
    legend: str = ""
    panel: str = ""

    @property
    def is_summarised(self) -> bool:
        """Whether summaries say where a run came to in it: it has a chart of its own."""
        return bool(self.chart and not self.legend)


COLUMNS = (
    Column("step", on_console=True),
    Column("samples"),
    Column("loss", True, "Loss", "loss", panel="Training loss (do not compare)"),
    Column("mse", True, "Mean squared error", "mse", panel="Training mse (do not compare)"),
    Column("vb", True, "Variational bound", "vb"),
    Column("grad_norm", True, "Gradient norm", "L2 norm", panel="Gradient norm"),
    *(
        Column(f"loss_{name[:2]}", False, "Loss by quarter of the timesteps", "loss", legend=name)
        for name in QUARTERS
    ),
    *(Column(f"mse_{name[:2]}", panel=f"mse by quarter of t: {name}") for name in QUARTERS),
    *(Column(f"vb_{name[:2]}") for name in QUARTERS),
    Column("kid", False, KID, "KID", panel=KID),
    Column("lr"),
    Column("skipped_updates"),
    Column("lg_loss_scale"),
    Column("wall_time"),
    Column("steps_per_second", on_console=True),
)


def in_order(names: Iterable[str]) -> list[str]:
    """The names of columns in the order of this list, then unknown ones by name."""
    places = {column.name: place for place, column in enumerate(COLUMNS)}
    return sorted(names, key=lambda name: (places.get(name, len(places)), name))
