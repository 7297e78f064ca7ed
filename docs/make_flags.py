"""Write docs/flags.md: every flag, from the classes that declare them.

usage: python docs/make_flags.py     (or: make docs)
"""

import html
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any, get_args

from improved_diffusion.options.command_line import as_words
from improved_diffusion.options.flags import Options
from improved_diffusion.options.model import ImageModelOptions, SuperResOptions
from improved_diffusion.options.presets import PRESETS
from improved_diffusion.options.training import TrainingOptions
from improved_diffusion.system.files import atomic_write_text

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs" / "flags.md"
OF_A_MODEL = (ImageModelOptions, SuperResOptions)  # the flags that its config.json gives
INTRODUCTION = """\
# Flags

`make docs` writes this page from the classes that declare the flags. A script has the flags of
several classes. Flags are written out (`--batch_size`, not `--batch`), and truth values are words
(`True`, `False`).

**On resume**: a run that goes on may have another value of a flag that *may change*. It is refused
with another value of one that *must stay*.

**In use**: a script that uses a trained model finds the model's flags in the `config.json` beside
it. A flag that is used *as trained* can have no other value. A *free* one may be given, and is else
as trained. One that is *not adopted* may be given, and has else its default.
"""

Kinds = dict[str, type[Options] | None]  # the class of each script's flags, if it has one


def main() -> None:
    atomic_write_text(PAGE, make_page())
    print(PAGE)


def make_page() -> str:
    """The page as it should be."""
    found = find_scripts()
    kinds = {name: kind for name, kind in found.items() if kind}
    users: dict[type[Options], list[str]] = {}
    rows = ["| script | its flags |", "| --- | --- |"]
    for name, kind in kinds.items():
        for c in declaring(kind):
            users.setdefault(c, []).append(name)
        links = (f"[{c.__name__}](#{c.__name__.lower()})" for c in declaring(kind))
        rows.append(f"| `{name}.py` | {', '.join(links)} |")
    sections = [
        make_section(c, users[c], any(issubclass(kinds[n], TrainingOptions) for n in users[c]))
        for c in sorted(users, key=lambda c: -len(users[c]))
    ]
    others = " and ".join(f"`{name}.py`" for name, kind in found.items() if not kind)
    rest = f"{others}, and the scripts in `datasets/`, have a few of their own: see `--help`."
    parts = [INTRODUCTION.strip(), "\n".join(rows), rest, *sections, make_presets()]
    return "\n\n".join(parts) + "\n"


def find_scripts() -> Kinds:
    """The scripts by name, each with the class of its flags."""
    sys.path.insert(0, str(PROJECT / "scripts"))
    kinds: Kinds = {}
    for path in sorted((PROJECT / "scripts").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "run(main)" in text:
            kind = re.search(r"parse_(?:options|for_model)\((\w+)", text)
            kinds[path.stem] = kind and getattr(importlib.import_module(path.stem), kind[1])
    return kinds


def declaring(kind: type[Options]) -> list[type[Options]]:
    """The classes that declare the flags of ``kind``, its own first."""
    return [c for c in kind.__mro__ if issubclass(c, Options) and own_flags(c)]


def own_flags(c: type[Options]) -> list[str]:
    """The names of the flags that a class declares itself."""
    return [name for name in inspect.get_annotations(c) if name in c.flags()]


def make_section(c: type[Options], scripts: list[str], resumes: bool) -> str:
    """What a class is, which scripts have its flags, and a table of those that it declares.

    :param resumes: whether one of the scripts is a training.
    """
    columns = ["flag", "type", "default", "what it is"]
    columns += ["on resume"] * resumes
    columns += ["in use"] * any(issubclass(part, c) for part in OF_A_MODEL)
    rows = [columns, ["---"] * len(columns)]
    for name in own_flags(c):
        rules, default = c.flags()[name], c.defaults()[name]
        cells = {
            "flag": f"`--{name}`",
            "type": type_name(c.types()[name]),
            "default": "empty" if default == "" else f"`{default}`",
            "what it is": escaped(rules.full_help()),
            "on resume": rules.on_resume,
            "in use": rules.in_use,
        }
        rows.append([cells[column] for column in columns])
    about = f"{c.__doc__} " if len(scripts) > 1 else ""
    used_in = ", ".join(f"`{name}.py`" for name in scripts)
    table = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([f"## {c.__name__}", "", f"{about}In {used_in}.", "", *table])


def make_presets() -> str:
    """What each preset is for, and the flags that it stands for."""
    about = (
        "`image_train.py --preset NAME` begins with the flags of a preset. Others on the command "
        "line override them; `--guidance` also drops the interval that a preset has for its own "
        "scale."
    )
    rows = (
        f"| `{name}` | {escaped(preset.about)} | `{' '.join(as_words(preset.flags))}` |"
        for name, preset in PRESETS.items()
    )
    return "\n".join(
        ["## Presets", "", about, "", "| preset | for | flags |", "| --- | --- | --- |", *rows]
    )


def type_name(kind: Any) -> str:
    """``int``, or ``int or str``."""
    return " or ".join(each.__name__ for each in get_args(kind) or (kind,))


def escaped(text: str) -> str:
    """A help text for a cell of a table in Markdown."""
    return re.sub(r"([*|])", r"\\\1", html.escape(text, quote=False))


if __name__ == "__main__":
    main()
