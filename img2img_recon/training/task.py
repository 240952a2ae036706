"""What a kind of training is: its defaults, data, network, scores; all that scripts, sweeps and jobs ask.

A task is asked in this order, and each step needs the one before it:

    resolve   flags -> the configuration with every default settled; no data are read, torch is not imported
    prepare   finds and checks the data, names the run
    build     module, loaders, trainer
    score     what metrics.json holds

Run ids, dry runs and estimates stop after `resolve`; `img2img_recon.training.runner.run_task` goes all the way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from img2img_recon.support.cli import Flag, config_from, flags_of
from img2img_recon.support.errors import InputError
from img2img_recon.training.options import COOL_DOWN, NOT_IDENTITY, TrainingFlags

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import Tensor, nn

    from img2img_recon.networks.zoo import Row
    from img2img_recon.support.progress import Track
    from img2img_recon.training.run_folder import RunFolder

ConfigT = TypeVar("ConfigT", bound=TrainingFlags)
PreparedT = TypeVar("PreparedT", bound="PreparedRun")
Report = Callable[[str], None]


@dataclass(frozen=True)
class Workload:
    """How much a configuration trains, as far as is known before data are read.

    Attributes:
        image_size: (H, W) of the images that the network is trained on.
        train_images: training images or slices, None where only the data say it.
        presented: images that go through the network in the whole training, None likewise.
    """

    image_size: tuple[int, int]
    train_images: int | None
    presented: int | None


@dataclass(frozen=True)
class PreparedRun:
    """A run with everything looked up and checked, before anything is trained; tasks add their data.

    Attributes:
        config: resolved, with what the data decided.
        run: its folder.
        content: what makes the run the run it is (`Task.identity`).
        report: takes the messages for the person at the terminal.
        track: progress bars, if wanted.
    """

    config: Any
    run: RunFolder
    content: dict[str, Any]
    report: Report
    track: Track

    def data_digest(self) -> str:
        """What tells the run's data from others wherever they lie; empty where nothing does."""
        return ""


@dataclass(frozen=True)
class TrainingParts:
    """What a training puts together, built and thereby checked before anything is written."""

    module: pl.LightningModule
    data: pl.LightningDataModule
    trainer: pl.Trainer


class Task(ABC, Generic[ConfigT, PreparedT]):
    """One kind of training.

    Attributes:
        name: the word for it, as stored in runs and sweep files.
        config_class: its flags.
        monitor: the validation metric that chooses the checkpoint.
        monitor_mode: "max" or "min", which of two scores is better.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[Any]]
    monitor: ClassVar[str]
    monitor_mode: ClassVar[str] = "max"

    @abstractmethod
    def models(self) -> Mapping[str, Row]:
        """The networks that `--model` takes, by name."""

    def flags(self) -> dict[str, Flag]:
        """Every flag by name, the networks' options among them."""
        return flags_of(self.config_class, self.models())

    def config(self, values: Mapping[str, Any]) -> ConfigT:
        """The configuration from flags by name, of whatever type JSON or YAML gave them.

        Raises:
            InputError: an unknown flag or a value that does not fit.
        """
        return config_from(self.config_class, values, self.models())

    def values(self, config: ConfigT) -> dict[str, Any]:
        """The flags of a resolved configuration by name, as `--config` reads them.

        What `resolve` assumed of the data is left open.
        """
        found = {**vars(config), **config.options}
        known = self.flags().keys() & found.keys() - set(config.assumed)
        return {name: plain(found[name]) for name in found if name in known}

    @abstractmethod
    def resolve(self, given: ConfigT) -> ConfigT:
        """The configuration with every default settled, without reading data or importing torch.

        With `--init`, the network's file is read, and torch imported for it.

        Raises:
            InputError: an unknown model, or flags that do not go together.
        """

    def begun(self, given: ConfigT) -> tuple[ConfigT, Mapping[str, Any]]:
        """The flags with what `--init` settles, and what the network's file says of itself; without it nothing.

        Raises:
            InputError: a network that cannot be used, or a flag without the one that it belongs to.
        """
        if given.cool_down != COOL_DOWN and given.budget_min is None:
            raise InputError(f"--cool_down: given {given.cool_down:g}, needs --budget_min")
        if given.init is None:
            return given, {}
        from img2img_recon.training.beginnings import with_beginning

        return with_beginning(given, self.begins_with)

    begins_with: ClassVar[tuple[str, ...]] = ()
    """Tasks of the networks that `--init` takes."""

    @abstractmethod
    def workload(self, config: ConfigT) -> Workload:
        """How much a resolved configuration trains."""

    @abstractmethod
    def network(self, config: ConfigT) -> nn.Module:
        """What a resolved configuration trains, with random weights, as it stands in its Lightning module."""

    def example(self, config: ConfigT) -> tuple[Tensor | None, ...] | None:
        """What the network takes for one training image, on the meta device; None where it is not known."""
        import torch

        if (chans := config.options.get("in_chans")) is None:
            return None
        return (torch.empty(1, chans, *self.workload(config).image_size, device="meta"),)

    def identity(self, config: ConfigT) -> dict[str, Any]:
        """What makes a run the run it is, JSON-serialisable; equal content means the same run."""
        content = {
            key: value
            for key, value in asdict(config).items()
            if key not in (*NOT_IDENTITY, *self.not_identity)
            # A run without them is the run that it was before there were such flags.
            and (key, value) not in (("init", None), ("cool_down", COOL_DOWN))
        }
        return {"task": self.name} | {key: plain(value) for key, value in content.items()}

    not_identity: ClassVar[tuple[str, ...]] = ()
    """Flags of this task that may change between a run and its continuation."""

    @abstractmethod
    def default_run(self, config: ConfigT, content: Mapping[str, Any]) -> Path:
        """The run's folder where `--run` is not given: one per configuration."""

    @abstractmethod
    def prepare(self, config: ConfigT, report: Report) -> PreparedT:
        """Find and check the data of a resolved configuration; nothing is written.

        Raises:
            InputError: data, flags or run folder that cannot be used.
        """

    @abstractmethod
    def build(self, prepared: PreparedT) -> TrainingParts:
        """Make the module, the data module and the trainer.

        Raises:
            InputError: settings that do not go together.
        """

    @abstractmethod
    def describe(self, prepared: PreparedT, parts: TrainingParts) -> str:
        """One line on what is about to be trained."""

    @abstractmethod
    def score(self, prepared: PreparedT) -> dict[str, Any]:
        """Apply the best checkpoint to the validation data, draw, and return what metrics.json holds."""

    def finish(self, prepared: PreparedT) -> None:
        """Make what else belongs into the folder, also when the run was found finished."""


def plain(value: Any) -> Any:
    """A flag's value as JSON holds it: paths absolute and as text, tuples as lists."""
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value
