"""The flags of scripts that use a trained model: those of its training, from ``config.json``."""

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th

from .. import dist_util, logger
from ..data.image_source import ImageSource, as_typed
from ..errors import InputError, as_word
from ..models.architecture import check_fit
from ..options.command_line import as_words, parse_values
from ..options.flags import Flag, Options, as_kind
from ..options.model import (
    AUTO,
    DiffusionOptions,
    ImageModelOptions,
    ModelOptions,
    SuperResOptions,
)
from ..options.presets import without_followers
from ..options.training import ImageTraining, SuperResTraining
from ..options.using import (
    GuideOptions,
    ImageSampling,
    LabelOptions,
    TrainedOptions,
    UseOptions,
)
from ..respace import SpacedDiffusion
from ..script_util import build_diffusion, build_model
from ..system.files import is_folder, join, list_folder, parse_json, read_file
from ..training import checkpoints
from ..unet import UNetModel
from .runs import CONFIG_NAME, say_what_computes

AnyUse = TypeVar("AnyUse", bound=TrainedOptions)
SAMPLING = "sampling"  # what config.json calls flags for image_sample.py to begin with
MOST_NAMES = 12  # of classes in one line of a message
# Flags in which a model and its guide agree, with those of the process.
OF_THE_IMAGES = ("image_size", "large_size", "small_size", "in_channels", "class_cond")


@dataclass(frozen=True)
class Trained:
    """What is known of a trained model besides its flags.

    :param data: what ``config.json`` says of the images that it was trained on.
    :param has_config: whether there is a ``config.json`` beside it.
    :param room: for how many classes it has room; it may have seen fewer.
    :param recommended: flags of sampling that ``config.json`` has and the command line has not.
    """

    data: Mapping[str, Any]
    has_config: bool
    room: int
    recommended: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of its classes; empty where they are not known."""
        return list(self.data.get("classes") or ())

    @property
    def num_classes(self) -> int:
        """How many classes it was trained on."""
        return len(self.names) or self.room

    def known_classes(self) -> str:
        """The classes that it was trained on, for a message."""
        return named(self.names) if self.names else f"0 to {self.room - 1}"

    def labels_of(self, images: ImageSource) -> np.ndarray:
        """The class of each image by its number in the model, int64 [N].

        :raises InputError: if they have none, or an image is of a class that the model has not.
        """
        if images.labels is None:
            raise InputError(
                f"the images in {images.path} have no classes, and the model needs them: "
                f"{images.labelling}"
            )
        refusal = f"; the model knows {self.known_classes()}"
        return images.labels.numbers_among(self.names, self.num_classes, images.path, refusal)

    def class_numbers(self, text: str) -> list[int]:
        """The numbers of classes, from their names or numbers, separated by commas or lines.

        A name with a comma stands in double quotes; spaces around a name count where they are its
        own.

        :raises InputError: if the model has no such class; lists those that it has.
        """
        numbers = {str(number): number for number in range(self.num_classes)}
        numbers |= {as_typed(name): number for number, name in enumerate(self.names)}
        text = as_typed(text)
        if text in map(as_typed, self.names):
            return [numbers[text]]
        words = [word for row in csv.reader(text.splitlines()) for word in row if word.strip()]
        chosen = [word if word in numbers else word.strip() for word in words]
        for word in chosen or filter(None, [text]):
            if word not in numbers:
                known = self.known_classes()
                raise InputError(f"the model knows no class {word!r}; it knows {known}")
        return [numbers[word] for word in chosen]


def named(names: list[str]) -> str:
    """Names for one line of a message: not more than :data:`MOST_NAMES` of them."""
    rest = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + rest


@dataclass(frozen=True)
class Config:
    """What the ``config.json`` beside a model's file says; nothing, where there is none.

    :param path: of it; "" where there is none.
    :param flags: of the training.
    :param data: what it says of the images.
    :param sampling: flags of ``image_sample.py`` that it recommends.
    """

    path: str = ""
    flags: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def beside(cls, model_path: str) -> "Config":
        """:raises InputError: if it is no run's configuration."""
        folder = os.path.dirname(model_path) or "."
        if CONFIG_NAME not in list_folder(folder):
            return cls()
        path = join(folder, CONFIG_NAME)
        content = read_file(path)
        try:
            return cls._of(path, parse_json(content))
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise _no_configuration(path, error) from None

    @classmethod
    def _of(cls, path: str, config: Any) -> "Config":
        flags, data = dict(config["flags"]), dict(config.get("data", {}))
        known = {**SuperResTraining.types(), **ImageTraining.types()}
        for name, value in flags.items():
            if name not in known:
                raise ValueError(f"there is no flag {name}")
            try:
                flags[name] = as_kind(value, known[name])
            except TypeError as error:
                raise TypeError(f"its {name} must be {error}") from None
        if flags.get("num_classes") == AUTO:
            raise ValueError(f"its num_classes is {AUTO}")
        classes = data.get("classes") or []
        if type(classes) is not list or not all(isinstance(name, str) for name in classes):
            raise TypeError(f"its classes are {data['classes']!r}")
        return cls(path, flags, data, dict(config.get(SAMPLING, {})))

    def adopted(
        self, part: type[Options], values: Mapping[str, Any], given: set[str]
    ) -> dict[str, Any]:
        """The flags of a part to take from the training.

        :param values: all flags of the script; ``given`` names those of the command line.
        :raises InputError: if a given flag contradicts the training; names all such with both
            values.
        """
        rules = part.flags()
        trained = {name: self.flags[name] for name in rules if name in self.flags}
        contradicting = [
            f"--{name} is {as_word(values[name])}, trained with {as_word(trained[name])}"
            for name in sorted(trained.keys() & given)
            if rules[name].in_use == "as trained" and values[name] != trained[name]
        ]
        if contradicting:
            raise InputError(f"{'; '.join(contradicting)} (see {self.path}); leave such flags out")
        return {
            name: value
            for name, value in trained.items()
            if name not in given and rules[name].in_use != "not adopted"
        }

    def recommended(self, kind: type[Options], given: set[str]) -> dict[str, Any]:
        """The flags to sample with that are not given, where the options are ``ImageSampling``.

        :raises InputError: if they cannot be.
        """
        if not (self.sampling and issubclass(kind, ImageSampling)):
            return {}
        try:
            values, known = parse_values(kind, None, as_words(self.sampling))
        except (InputError, AttributeError) as error:
            raise _no_configuration(self.path, f"its {SAMPLING}: {error}") from None
        free = without_followers(values, given).keys() & known - given
        return {name: values[name] for name in sorted(free)}

    def about(self, num_classes: int | str, recommended: Mapping[str, Any]) -> Trained:
        """What is known of the model."""
        return Trained(self.data, bool(self.path), int(num_classes), recommended)


def _no_configuration(path: str, why: object) -> InputError:
    return InputError(
        f"{path} is not a run's configuration ({why}); copy it anew, or move it away and give the "
        "flags that the model was trained with"
    )


def parse_for_model(kind: type[AnyUse], description: str | None) -> tuple[AnyUse, Trained]:
    """The options of a script that uses a trained model, and what is known of that model.

    Flags of the model that the command line does not give come from ``config.json``. In the
    options, ``model_path`` is a file: of a run's folder the EMA to take.

    :raises InputError: for flags that cannot work, or contradict the model's training.
    """
    values, given = parse_values(kind, description)
    if not values["model_path"]:
        raise InputError("no --model_path given; name a run's folder, or a model*.pt or ema_*.pt")
    _check_classes(values)
    path = file_of(values["model_path"])
    config = Config.beside(path)
    part = SuperResOptions if issubclass(kind, SuperResOptions) else ImageModelOptions
    for other in (ImageModelOptions, SuperResOptions):
        if other is not part and other.SIZE in config.flags:
            raise InputError(f"{path} is of {other.WHAT}: use the {other.SCRIPTS}*.py scripts")
    recommended = config.recommended(kind, given)
    values |= recommended | config.adopted(part, values, given)
    options = kind(**values | {"model_path": path})
    return options, config.about(values["num_classes"], recommended)


def file_of(model_path: str) -> str:
    """The file that ``--model_path`` means: of a run's folder the EMA to take."""
    return checkpoints.choose_ema(model_path) if is_folder(model_path) else model_path


class LoadedRun(NamedTuple):
    """A trained model, ready to evaluate, and what belongs to it.

    ``trained`` has what else is known: the classes, and which flags of sampling suit the model
    (``recommended``).
    """

    model: UNetModel
    diffusion: SpacedDiffusion
    options: ImageModelOptions | SuperResOptions
    trained: Trained


def load_run(path: str | os.PathLike, *, ema_correction: bool = True, **flags: Any) -> LoadedRun:
    """Load a trained model in float32 on the device that is used, and its diffusion.

    :param path: a run's folder, for the EMA that scripts take of it; or a ``model*.pt`` or
        ``ema_*.pt``.
    :param ema_correction: take the initial weights out of an EMA, if they were kept beside it.
    :param flags: of the model and its process, which no ``config.json`` beside it has; a
        ``large_size`` is of a model that enlarges.
    :raises InputError: if there is no model, it is damaged or does not fit its flags, or a flag
        is unknown or contradicts its training.
    """
    file = file_of(os.fspath(path))
    config = Config.beside(file)
    enlarges = SuperResOptions.SIZE in flags.keys() | config.flags.keys()
    part = SuperResOptions if enlarges else ImageModelOptions
    if unknown := flags.keys() - part.flags():
        raise InputError(f"a model has no flag {min(unknown)!r}; see docs/flags.md")
    values = part.defaults() | flags
    _check_classes(values)
    values |= config.adopted(part, values, set(flags))
    options = part(**values)
    load_trained(model := build_model(options), file, ema_correction)
    trained = config.about(options.num_classes, config.recommended(ImageSampling, set()))
    return LoadedRun(model, build_diffusion(options), options, trained)


def _check_classes(values: dict[str, Any]) -> None:
    if values["num_classes"] == AUTO:
        raise InputError("--num_classes auto is for training; leave it out, or give the number")


def options_of_guide(options: GuideOptions, trained: Trained) -> tuple[ModelOptions, str]:
    """The flags of the model that ``--guide_model`` names, and the path of its file.

    Without a ``config.json`` beside it, its flags are those of the model to guide.

    :raises InputError: if it makes other images than that model, or by another process.
    """
    path = file_of(options.guide_model)
    if os.path.realpath(path) == os.path.realpath(options.model_path):
        raise InputError(f"--guide_model {path} is the model itself; name a worse one")
    part = SuperResOptions if isinstance(options, SuperResOptions) else ImageModelOptions
    own = options.of(part)
    config = Config.beside(path)
    if not config.path:
        return own, path
    theirs = part(**part.defaults() | config.adopted(part, {}, set()))
    differing = [
        f"{name} is {as_word(getattr(theirs, name))} there and {as_word(getattr(own, name))} here"
        for name, rules in part.flags().items()
        if (name in OF_THE_IMAGES or _of_the_process(name, rules))
        and getattr(theirs, name) != getattr(own, name)
    ]
    without_label = isinstance(options, LabelOptions) and not options.label
    if without_label and theirs.class_cond and not theirs.label_dropout:
        differing.append("it has not learned to do without a label (its label_dropout is 0)")
    if own.class_cond and theirs.num_classes != own.num_classes:
        differing.append(f"num_classes is {theirs.num_classes} there and {own.num_classes} here")
    names = list(config.data.get("classes") or ())
    if own.class_cond and trained.names and names and names != trained.names:
        differing.append(f"its classes are {named(names)}, and here {named(trained.names)}")
    if differing:
        raise InputError(
            f"{path} cannot guide this model: {'; '.join(differing)}; give a model of the same "
            "images and the same process"
        )
    return theirs, path


def _of_the_process(name: str, rules: Flag) -> bool:
    """Whether a flag says which noise a timestep has, or what an output stands for."""
    known = name in DiffusionOptions.flags() and rules.in_use == "as trained"
    return known and not rules.in_weights


@th.no_grad()
def load_trained(model: th.nn.Module, model_path: str, ema_correction: bool = True) -> th.nn.Module:
    """Load a checkpoint into ``model`` and make it ready to evaluate.

    :param ema_correction: take the initial weights out of an EMA, if they were kept beside it.
    :raises InputError: if its file is missing, unsafe or does not fit.
    """
    checkpoints.load_into(model, model_path)
    try:
        share, path = checkpoints.initial_part(model_path, ema_correction)
        if path:
            initial = checkpoints.load_model_file(path)
            check_fit(model, initial, path)
            model.load_state_dict(checkpoints.without_initial(model.state_dict(), initial, share))
    except InputError as error:
        raise InputError(
            f"{error}; or give --ema_correction False to leave the initial weights in the EMA"
        ) from error
    return model.to(dist_util.dev()).eval()


def about_model(options: TrainedOptions, trained: Trained, model: th.nn.Module) -> list[str]:
    """Lines on the model: its size, what its EMA holds, and whether its flags are known."""
    parameters = sum(p.numel() for p in model.parameters())
    lines = [f"Model: {options.model_path}", f"Parameters: {parameters / 1e6:.2f} M"]
    share, path = checkpoints.initial_part(options.model_path, options.ema_correction)
    if path:
        lines.append(f"EMA: its share of the initial weights, {share:.2%}, is taken out ({path})")
    elif share > checkpoints.SETTLED:
        lines.append(
            f"This EMA still holds {share:.0%} of its initial weights, so expect noise; "
            "model*.pt, a lower --ema_rate or more training is better"
        )
    if not trained.has_config:
        hidden = (name for name, rules in options.flags().items() if not rules.in_weights)
        flags = " ".join(f"--{name} {getattr(options, name)}" for name in hidden)
        lines.append(
            f"No {CONFIG_NAME} beside the model: its flags are the command line's, or "
            f"defaults. Its weights do not show whether these are right: {flags}"
        )
    return lines


def describe(options: UseOptions, trained: Trained, model: th.nn.Module) -> None:
    """Log what computes, which model, and how."""
    say_what_computes(options.precision)
    for line in about_model(options, trained, model):
        logger.log(line)
    logger.log(f"Precision: {options.precision}")
