"""The README's commands, run as they are written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.fastmri_plugin.readers.files import bart
from tests.scripts import run_script

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text()


def run_command(command: str, folder: Path) -> str:
    """What a command that follows `python` says."""
    done = run_script(shlex.split(command), cwd=folder)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(tiny_data, tmp_path_factory) -> Path:
    """A folder in which DIR, scan.cfl, SCANS, scans.h5 and the scripts are what the README takes them for."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "fastmri_plugin").symlink_to(PROJECT / "fastmri_plugin")
    (folder / "DIR").symlink_to(tiny_data("singlecoil"))
    draw = np.random.default_rng(0)
    with h5py.File(folder / "scans.h5", "w") as file:
        noise = draw.standard_normal((4, 32, 32, 2))
        file["image"] = (noise[..., 0] + 1j * noise[..., 1]).astype(np.complex64)
        file["volume"] = [0, 0, 1, 1]
    (folder / "SCANS").mkdir()
    kspace = (noise[..., 0] + 1j * noise[..., 1]).astype(np.complex64)
    np.save(folder / "SCANS" / "coils.npy", kspace)
    bart(folder / "scan", kspace[None])
    return folder


@pytest.mark.slow
def test_commands(place):
    """As written but for the size of the network and the epochs."""
    commands = re.findall(r"^    python (fastmri_plugin/.*)$", README, flags=re.MULTILINE)
    assert len(commands) >= 7
    tiny = "--max_epochs 2 --patch_size 4 --embed_dim 4 --depth 1 --mlp_ratio 1 --num_workers 0"
    for command in commands:
        trains = "train.py" in command and "--mode test" not in command
        said = run_command(f"{command} {tiny}" if trains else command, place)
        if "train.py" in command and not (place / "RUN").exists():
            (run,) = (place / "runs").iterdir()
            (place / "RUN").symlink_to(run)
        if "--validate" in command:
            assert "valid submission" in said


@pytest.fixture(scope="module")
def photo_place(tmp_path_factory) -> Path:
    """A folder with PHOTOS, SIDD's layout and PAIRS, small ones."""
    from PIL import Image
    from skimage import data

    folder = tmp_path_factory.mktemp("denoise")
    (folder / "denoise_tasks").symlink_to(PROJECT / "denoise_tasks")

    def save(name: str, number: int, noise: float = 0) -> None:
        part = data.astronaut()[16 * number : 16 * number + 256, :256]
        noisy = part + np.random.default_rng(0).normal(0, noise, part.shape)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)

    for number in range(5):
        save(f"PHOTOS/{number}.png", number)
    save("photo.jpg", 0, noise=30)
    save("FOLDER/one.png", 1, noise=30)
    for number, scene in enumerate(("001", "006", "009")):
        at = f"SIDD_Small_sRGB_Only/Data/{number:04}_{scene}_S6_00100"
        save(f"{at}/NOISY_SRGB_010.PNG", number, noise=20)
        save(f"{at}/GT_SRGB_010.PNG", number)
    for scene in ("kitchen", "garden"):
        save(f"PAIRS/{scene}/1_noisy.png", 1, noise=20)
        save(f"PAIRS/{scene}/1_clean.png", 1)
    return folder


@pytest.mark.slow
def test_denoising_commands(photo_place):
    """As written but for the sizes: tiny networks, one epoch, one image to score."""
    commands = re.findall(r"^    python (denoise_tasks/.*)$", README, flags=re.MULTILINE)
    assert len(commands) >= 9
    tiny = "--max_epochs 1 --patch_size 4 --embed_dim 4 --depth 1 --mlp_ratio 1 --num_workers 0"
    for command in commands:
        if ".mat" in command or "SubmitSrgb" in command or "untrained.py" in command:
            continue  # files of a quarter of a gigabyte, and a long study: see the scripts' own tests
        command = command.replace("--train_images 4000", "--train_images 3")
        if "train.py" in command:
            command += f" {tiny}"
            command += (
                "" if "data_path" in command or "pairs" in command else " --crops_per_image 1"
            )
        if "evaluate.py" in command:
            command = command.replace("15 25 30 50", "50") + " --limit 1"
        run_command(command, photo_place)
        if "--data_path PHOTOS --train_images" in command:
            runs = sorted((photo_place / "runs").iterdir())
            (photo_place / "RUN").symlink_to(runs[0])
            (photo_place / "OTHER_RUN").symlink_to(runs[1])
    assert sorted(path.name for path in (photo_place / "DENOISED").rglob("*.*")) == [
        "one.png",
        "photo.jpg",
    ]


@pytest.mark.slow
def test_sweep_commands(tmp_path, tiny_data):
    """As written, on data that a site file names; what needs SLURM is in test_slurm.py or goes dry."""
    for name in ("cluster", "fastmri_plugin"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "DIR").symlink_to(tiny_data("singlecoil"))
    (tmp_path / "cluster_site.yaml").write_text("base: {mri: {data_path: DIR}}")
    commands = re.findall(r"^    python (cluster/.*)$", README, flags=re.MULTILINE)
    (launch,) = (command for command in commands if "launch.py" in command)
    assert "#SBATCH --gpus-per-node=4" in run_command(
        launch.replace("launch.py", "launch.py --dry_run"), tmp_path
    )
    sweeps = commands[: commands.index(launch)]
    assert len(sweeps) >= 5
    for command in sweeps:
        said = run_command(command, tmp_path)
        if "status" in command:
            assert "smoke: 4 done" in said
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 5


def test_python_block():
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert tuple(names["image"].shape) == (1, 1, 301, 222)


def test_make_targets_exist():
    makefile = (PROJECT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (PROJECT / link).exists(), link


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        *(
            (f"fastmri_plugin/{name}", "--challenge")
            for name in (
                "train",
                "reconstruct",
                "evaluate",
                "export_submission",
                "freeze_split",
                "convert",
            )
        ),
        ("denoise_tasks/train", "--task"),
        ("denoise_tasks/evaluate", "--method"),
        ("denoise_tasks/denoise", "--self_ensemble"),
        ("denoise_tasks/release", "--options"),
        ("denoise_tasks/untrained", "--image"),
        ("cluster/sweep", "submit"),
        ("cluster/launch", "--nodes"),
        ("tests/slurm/local_slurm", "install"),
    ],
)
def test_help(name, flag, script):
    done = script(f"{name}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert flag in done.stdout


def test_proofs_of_reliability_are_tests_that_exist():
    page = (PROJECT / "docs" / "RELIABILITY.md").read_text()
    commands = re.findall(r"`(?:FUZZ=\d+ )?pytest (tests/\S+\.py)(?: -k (\w+|\"[^\"]+\"))?`", page)
    assert len(commands) == page.count("pytest tests/") >= 20
    for file, words in commands:
        tests = re.findall(r"def (test_\w+)", (PROJECT / file).read_text())
        for word in words.strip('"').split(" or "):
            assert any(word in test for test in tests), f"{file}: no test with {word}"
