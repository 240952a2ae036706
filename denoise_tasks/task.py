"""The two tasks of denoising, Gaussian noise and pairs of photographs: recipes, what is trained and scored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from denoise_tasks.options import LAPTOP_NETWORKS, PAIRS_CENTRE, RECIPES, TrainConfig
from img2img_recon.networks.zoo import MODELS, Row, build_model, complete_config
from img2img_recon.support.errors import InputError
from img2img_recon.training.run_folder import RunFolder, config_hash, data_digest
from img2img_recon.training.task import PreparedRun, Report, Task, TrainingParts, Workload

if TYPE_CHECKING:
    from torch import nn

    from denoise_tasks.data import EvalImages, RunImages, TrainCrops
    from denoise_tasks.module import DenoisingModule
    from img2img_recon.support.progress import Track

PANELS = 8


@dataclass(frozen=True)
class PreparedDenoising(PreparedRun):
    """A denoising run with its images decoded.

    Attributes:
        train: training crops.
        val: validation images.
    """

    train: TrainCrops
    val: EvalImages

    def data_digest(self) -> str:
        """Names and sizes of the images of both sides."""
        stores = (self.train.clean, self.val.clean)
        return data_digest(
            file for store in stores for file in zip(store.names, store.shapes, strict=True)
        )

    @property
    def train_images(self) -> int:
        """How many images the training crops are cut from."""
        return len({window.image for window in self.train.windows})


class DenoisingTask(Task[TrainConfig, PreparedDenoising]):
    """What the two tasks have in common.

    Attributes:
        others_flags: flags of the other task, which this one refuses.
        baselines: methods that a run's own table shows beside its network.
    """

    config_class = TrainConfig
    monitor = "val_metrics/psnr"
    begins_with = ("denoising", "gaussian", "pairs")
    not_identity = ("skip_small",)
    others_flags: ClassVar[tuple[str, ...]] = ()
    baselines: ClassVar[tuple[str, ...]] = ()

    def models(self) -> Mapping[str, Row]:
        """All networks of the zoo."""
        return MODELS

    def config(self, values: Mapping[str, Any]) -> TrainConfig:
        """As `Task.config`; the flag `task` may be left out."""
        return super().config({"task": self.name, **values})

    def check_flags(self, given: TrainConfig) -> None:
        """See that the flags belong to this task and go together.

        Raises:
            InputError: they do not.
        """
        for name in self.others_flags:
            if getattr(given, name) not in (None, False):
                (other,) = TASKS.keys() - {self.name}
                raise InputError(f"--{name}: only for --task {other}, given --task {self.name}")
        if given.model not in self.models():
            raise InputError(f"--model: given {given.model}, allowed: {', '.join(self.models())}")

    def check_beginning(self, given: TrainConfig, known: Mapping[str, Any]) -> None:
        """See that flags that are never open go with the network of `--init`.

        Raises:
            InputError: they do not.
        """
        channels, residual = known["options"]["in_chans"], known.get("wrapper") == "residual"
        if given.channels != channels:
            raise InputError(
                f"--channels: given {given.channels}, allowed with --init {given.init}: {channels}"
            )
        if given.residual != residual:
            flag = "--residual" if residual else "--no_residual"
            raise InputError(f"--init: {given.init} was trained with {flag}; give it too")

    def learnt(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that go on from what the network of `--init` was trained for."""
        return {}

    @abstractmethod
    def recipe(self, given: TrainConfig) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Values of flags and options of the network that are used where none are given."""

    def resolve(self, given: TrainConfig) -> TrainConfig:
        """See `Task.resolve`."""
        given, known = self.begun(given)
        self.check_flags(given)
        if known:
            self.check_beginning(given, known)
        flags, options = self.recipe(given)
        flags = {**flags, **self.learnt(known)}
        if given.max_epochs is not None and flags["halve_at_epoch"]:
            # A shorter training halves at the same share of it.
            share = flags["halve_at_epoch"] / flags["max_epochs"]
            flags["halve_at_epoch"] = max(round(given.max_epochs * share), 1)
        config = given.filled(flags)
        assert config.crop_size is not None
        channels = {"in_chans": config.channels, "out_chans": config.channels}
        size = (config.crop_size, config.crop_size)
        complete = complete_config(config.model, {**channels, **options, **given.options}, size)
        return replace(config, options=complete)

    def train_images(self, config: TrainConfig) -> int | None:
        """Training images where they are known before data are read."""
        return config.train_images

    @abstractmethod
    def crops_per_image(self, config: TrainConfig) -> int:
        """Crops of an image that an epoch presents."""

    def workload(self, config: TrainConfig) -> Workload:
        """See `Task.workload`."""
        images, crop = self.train_images(config), config.crop_size or 1
        if images is None or config.budget_min is not None:
            return Workload((crop, crop), images, None)
        presented = images * self.crops_per_image(config) * (config.max_epochs or 1)
        return Workload((crop, crop), images, presented)

    def wrapper(self, config: TrainConfig) -> str:
        """What is around the network, a key of `img2img_recon.trained.WRAPPERS`."""
        return "residual" if config.residual else "plain"

    def network(self, config: TrainConfig) -> nn.Module:
        """A network that maps noisy images (B, C, H, W) of any size to denoised ones, not clipped."""
        from img2img_recon.trained import WRAPPERS

        return WRAPPERS[self.wrapper(config)](build_model(config.model, **config.options))

    def identity(self, config: TrainConfig) -> dict[str, Any]:
        """See `Task.identity`."""
        return super().identity(config) | {"wrapper": self.wrapper(config)}

    def default_run(self, config: TrainConfig, content: Mapping[str, Any]) -> Path:
        """`runs/<task>-<sigma>-<model>-<hash>`."""
        levels = config.sigma if isinstance(config.sigma, tuple) else (config.sigma,)
        level = "".join(f"-{one:g}" for one in levels if one is not None)
        return Path("runs") / f"{self.name}{level}-{config.model}-{config_hash(content)}"

    @abstractmethod
    def images(self, config: TrainConfig, report: Report, track: Track) -> RunImages:
        """Find and decode the images."""

    def prepare(self, config: TrainConfig, report: Report) -> PreparedDenoising:
        """See `Task.prepare`."""
        from img2img_recon.training.runner import track_of

        track = track_of(config.progress)
        train, val = self.images(config, report, track)
        content = self.identity(config)
        run = RunFolder(config.run or self.default_run(config, content))
        return PreparedDenoising(config, run, content, report, track, train, val)

    def module(self, config: TrainConfig) -> DenoisingModule:
        """What Lightning trains, with random weights."""
        from denoise_tasks.module import DenoisingModule, map_whole_crops

        network = self.network(config)
        if config.crop_margin:
            map_whole_crops(network, config.crop_size or 1, config.crop_margin)
        return DenoisingModule(
            network,
            protocol=config.protocol or "standard",
            sigma=config.sigma,
            level=config.level,
            loss=config.loss,
            lr=config.lr or 1e-3,
            halve_at_epoch=config.halve_at_epoch or None,
            optimizer=config.optimizer,
            crop_margin=config.crop_margin,
        )

    def build(self, prepared: PreparedDenoising) -> TrainingParts:
        """See `Task.build`."""
        import pytorch_lightning as pl

        from denoise_tasks.module import DenoisingData
        from img2img_recon.training.beginnings import begin
        from img2img_recon.training.trainer import compile_networks, make_trainer

        config, run, content = prepared.config, prepared.run, prepared.content
        pl.seed_everything(config.seed, verbose=False)
        module = self.module(config)
        begin(module, config.init)
        if config.compile:
            compile_networks(module)
        data = DenoisingData(
            prepared.train, prepared.val, config.batch_size, config.num_workers, config.seed
        )
        trainer = make_trainer(run, content, config, self.monitor, self.monitor_mode)
        return TrainingParts(module, data, trainer)

    def describe(self, prepared: PreparedDenoising, parts: TrainingParts) -> str:
        """See `Task.describe`."""
        from img2img_recon.networks.base import count_parameters

        return (
            f"{prepared.config.model}: {count_parameters(parts.module):,} parameters; "
            f"{len(prepared.train)} crops of {prepared.train_images} images per epoch, "
            f"{len(prepared.val)} validation images"
        )

    def score(self, prepared: PreparedDenoising) -> dict[str, Any]:
        """See `Task.score`; the network stands beside doing nothing and the `baselines`."""
        from denoise_tasks.figures import panels_in
        from denoise_tasks.methods import make_method
        from denoise_tasks.scoring import mean_scores, score_cases
        from denoise_tasks.trained import load_run

        config, run = prepared.config, prepared.run
        # Validation images are centres of 256 x 256.
        network = load_run(run.path, name=config.model, accelerator=config.accelerator, tile=256)
        methods = [*map(make_method, self.baselines), network]
        result = score_cases(
            "scoring",
            prepared.val.cases(),
            methods,
            draw=panels_in(run.figures, "", "-"),
            panels=PANELS,
            track=prepared.track,
        )
        rows = {method: result.scores(method) for method in result.methods()}
        return {
            "task": self.name,
            "model": config.model,
            "sigma": config.level,
            "protocol": config.protocol,
            "train_images": prepared.train_images,
            "scored_on": "validation images; the checkpoint was chosen on them too",
            "images": rows,
            "mean": {method: mean_scores(scores) for method, scores in rows.items()},
        }


class GaussianTask(DenoisingTask):
    """Clean images, to which noise of known strength is added."""

    name = "gaussian"
    others_flags = ("val_scenes",)
    baselines = ("tv",)

    def check_flags(self, given: TrainConfig) -> None:
        """As all denoising tasks, and the built-in photographs have no test side."""
        super().check_flags(given)
        if given.data_path is None and given.test_share:
            raise InputError(
                "--test_share: the photographs of scikit-image have fixed sides; give --data_path"
            )

    def recipe(self, given: TrainConfig) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The paper's, or what fits a laptop for the built-in photographs."""
        many = isinstance(given.sigma, tuple) and given.model.startswith("window_mixer")
        plane = {"noise_level_plane": True} if many else {}
        if given.data_path is not None:
            return RECIPES["gaussian"], plane
        return RECIPES["built-in"], LAPTOP_NETWORKS.get(given.model, {}) | plane

    def learnt(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """The levels of noise, and their protocol."""
        if not (sigma := known.get("sigma")):
            return {}
        levels = tuple(sigma) if isinstance(sigma, (list, tuple)) else sigma
        return {"sigma": levels, "protocol": known.get("protocol") or "standard"}

    def train_images(self, config: TrainConfig) -> int | None:
        """Of a folder only what `--train_images` says; the built-in photographs are known."""
        if config.train_images is not None or config.data_path is not None:
            return config.train_images
        from denoise_tasks.splits import builtin_sources

        return len(builtin_sources().train)

    def crops_per_image(self, config: TrainConfig) -> int:
        """What the flag says."""
        return config.crops_per_image or 1

    def images(self, config: TrainConfig, report: Report, track: Track) -> RunImages:
        """Single images."""
        from denoise_tasks.data import gaussian_images

        if config.data_path is None:
            report(
                "No --data_path: using the photographs that come with scikit-image, split by picture, "
                "and settings fit for a laptop."
            )
        return gaussian_images(config, report, track)


class PairsTask(DenoisingTask):
    """Noisy photographs with their clean versions: SIDD or any folder of pairs."""

    name = "pairs"
    others_flags = ("sigma", "crops_per_image", "fixed_noise")

    def check_flags(self, given: TrainConfig) -> None:
        """As all denoising tasks, and there are no built-in pairs."""
        super().check_flags(given)
        if given.protocol == "paper":
            raise InputError("--protocol: only for --task gaussian, given --task pairs")
        if given.loss != "mse" or given.options.get("noise_level_plane"):
            raise InputError(
                "--loss, --noise_level_plane (of --init too): only where the level is known, --task gaussian"
            )
        if given.data_path is None:
            raise InputError(
                "--data_path: missing; --task pairs needs SIDD's folder or a folder of noisy/clean pairs"
            )

    def recipe(self, given: TrainConfig) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What the paper trained SIDD with."""
        return RECIPES["pairs"], {}

    def crops_per_image(self, config: TrainConfig) -> int:
        """Patches of the centre of a photograph that is as large as SIDD's."""
        return (PAIRS_CENTRE // (config.crop_size or 1)) ** 2

    def images(self, config: TrainConfig, report: Report, track: Track) -> RunImages:
        """Pairs."""
        from denoise_tasks.data import pair_images

        return pair_images(config, report, track)


TASKS: dict[str, DenoisingTask] = {task.name: task for task in (GaussianTask(), PairsTask())}
