"""Command lines: every kind of flag from words, YAML and Python; help; errors of one line in plain words."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from img2img_recon.networks import zoo
from img2img_recon.support.cli import (
    Flag,
    config_from,
    flag,
    flags_of,
    network_options,
    parse_config,
    run_script,
    typed,
)
from img2img_recon.support.errors import InputError
from img2img_recon.support.types import (
    Devices,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
    Strategy,
    UnitShare,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train a thing. And more."""

    challenge: Literal["singlecoil", "multicoil"] = flag(help="which challenge", group="data")
    accel: tuple[PositiveInt, ...] | None = flag(
        None, help="accelerations", group="data", basic=True, aliases=("accelerations",)
    )
    run: tuple[Path, ...] = flag((), help="run folders")
    batch_size: PositiveInt | None = flag(None, help="samples", group="training", basic=True)
    lr: PositiveFloat | None = flag(None, help="highest rate", group="training", basic=True)
    seed: NonNegativeInt = flag(42, help="seeds", group="training")
    share: UnitShare = flag(1.0, help="share", group="data")
    val_share: OpenUnitInterval = flag(0.1, help="share that validates", group="data")
    val_images: int | None = flag(100, help="at most", group="data")
    channels: Literal[1, 3] = flag(3, help="of the image", group="data")
    img_size: int | tuple[int, int] | None = flag(None, help="H W", group="network")
    methods: tuple[Literal["tv", "bm3d", "zero_filled"], ...] = flag(("tv",), help="rivals")
    sigma: PositiveFloat | Literal["auto"] | None = flag(None, help="of the noise", group="data")
    name: str | None = flag(None, help="of the run")
    extra: Any = flag(None, help="anything")
    progress: bool = flag(True, help="bars", basic=True)
    augment: bool | None = flag(None, help="flips")
    compile: bool = flag(False, help="compile", group="cluster")
    devices: Devices = flag("auto", help="how many", group="cluster")
    strategy: Strategy = flag("auto", help="how", group="cluster")

    def __post_init__(self) -> None:
        if self.name == "refused":
            raise InputError("--name: given refused; allowed: other names")


@dataclass(frozen=True, kw_only=True)
class WithFiles:
    """Takes files."""

    inputs: tuple[Path, ...] = flag(help="pictures", positional=True)
    out: Path = flag(help="folder")
    sigma: float | None = flag(None, help="noise")
    overwrite: bool = flag(False, help="replace")


class Option(NamedTuple):
    name: str
    type: Any
    default: Any
    help: str


@dataclass(frozen=True, kw_only=True)
class WithNetwork:
    """Has a network."""

    model: str = flag("plain", help="network", group="network", basic=True)
    options: Mapping[str, Any] = network_options()


REQUIRED = ("--challenge", "singlecoil")


def parsed(*words: str) -> Config:
    return parse_config(Config, [*REQUIRED, *words])


def refused(*words: str, config_class: type[Any] = Config) -> str:
    with pytest.raises(InputError) as caught:
        parse_config(config_class, words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--accel 4", "accel", (4,)),
        ("--accel 4 8", "accel", (4, 8)),
        ("--accelerations 4 --accel 8", "accel", (4, 8)),
        ("--accel=4 --accel=8", "accel", (4, 8)),
        ("--run A --seed 1 --run B C", "run", (Path("A"), Path("B"), Path("C"))),
        ("--batch-size 012", "batch_size", 12),
        ("--batch_size=1_000", "batch_size", 1000),
        ("--batch_size 4 --batch_size 5", "batch_size", 5),
        ("--batch_size null", "batch_size", None),
        ("--lr 1e-3", "lr", 0.001),
        ("--lr 1", "lr", 1.0),
        ("--share 1", "share", 1.0),
        ("--val_images null", "val_images", None),
        ("--val_images -3", "val_images", -3),
        ("--channels 1", "channels", 1),
        ("--img_size 320", "img_size", 320),
        ("--img_size 320 256", "img_size", (320, 256)),
        ("--methods bm3d zero_filled", "methods", ("bm3d", "zero_filled")),
        ("--sigma auto", "sigma", "auto"),
        ("--sigma 25", "sigma", 25.0),
        ("--name 012", "name", "012"),
        ("--name=--x", "name", "--x"),
        ("--name a=b", "name", "a=b"),
        ("--extra {a: [1, x]}", "extra", {"a": [1, "x"]}),
        ("--no-progress", "progress", False),
        ("--no_progress --progress", "progress", True),
        ("--progress=false", "progress", False),
        ("--progress no", "progress", False),
        ("--augment", "augment", True),
        ("--no_augment", "augment", False),
        ("", "augment", None),
        ("--devices 0,1", "devices", "0,1"),
        ("--devices 2", "devices", "2"),
        (
            "--strategy ddp_find_unused_parameters_true",
            "strategy",
            "ddp_find_unused_parameters_true",
        ),
    ],
)
def test_values_from_words(words, name, value):
    pieces = words.split(" ", 1) if words.startswith("--extra") else words.split()
    found = getattr(parsed(*pieces), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("accel", 4, (4,)),
        ("accel", [4, 8], (4, 8)),
        ("accelerations", [4], (4,)),
        ("lr", "1e-3", 0.001),
        ("lr", 1, 1.0),
        ("batch_size", 3.0, 3),
        ("batch_size", None, None),
        ("run", "A", (Path("A"),)),
        ("run", Path("A"), (Path("A"),)),
        ("img_size", [320, 256], (320, 256)),
        ("channels", 1, 1),
        ("compile", True, True),
        ("devices", 2, "2"),
        ("name", "null", None),
        ("extra", [1], [1]),
        ("methods", [], ()),
    ],
)
def test_values_from_yaml_and_python(name, given, value):
    config = config_from(Config, {"challenge": "singlecoil", name: given})
    assert getattr(config, name.replace("accelerations", "accel")) == value


def test_numbers_are_pythons_own():
    # Checkpoints are read with weights_only, which knows no class of another library.
    config = config_from(
        Config, {"challenge": "singlecoil", "batch_size": 4, "lr": 1, "devices": 2}
    )
    assert [type(v) for v in (config.batch_size, config.lr, config.devices)] == [int, float, str]


ALLOWED = {
    "--batch_size 0": "--batch_size: given 0; allowed: a whole number above 0",
    "--batch_size x": "--batch_size: given x; allowed: a whole number above 0",
    "--batch_size 1.5": "--batch_size: given 1.5; allowed: a whole number above 0",
    "--batch_size 1e3": "--batch_size: given 1e3; allowed: a whole number above 0",
    "--batch_size 12:30": "--batch_size: given 12:30; allowed: a whole number above 0",
    "--batch_size 4 8": "--batch_size: given 4 8; allowed: a whole number above 0",
    "--batch_size=": "--batch_size: given an empty word; allowed: a whole number above 0",
    "--batch_size": "--batch_size: given without a value; give a whole number above 0",
    "--seed -1": "--seed: given -1; allowed: a whole number from 0",
    "--lr inf": "--lr: given inf; allowed: a number above 0",
    f"--lr {'9' * 400}": f"--lr: given {'9' * 400}; allowed: a number above 0",
    "--lr nan": "--lr: given nan; allowed: a number above 0",
    "--share 0": "--share: given 0; allowed: a number above 0, up to 1",
    "--val_share 1": "--val_share: given 1; allowed: a number above 0, below 1",
    "--val_images x": "--val_images: given x; allowed: a whole number, or null",
    "--channels 2": "--channels: given 2; allowed: 1, 3",
    "--accel 4,8": "--accel: given 4,8; give 4 8",
    "--accelerations [4,8]": "--accel: given [4,8]; give 4 8",
    "--accel 4 x": "--accel: given x; allowed: one or more whole numbers above 0",
    "--accel x,y": "--accel: given x,y; allowed: one or more whole numbers above 0",
    "--accel": "--accel: given without a value; give one or more whole numbers above 0",
    "--img_size 1 2 3": "--img_size: given 1 2 3; allowed: a whole number or 2 whole numbers",
    "--img_size 320,256": "--img_size: given 320,256; give 320 256",
    "--methods tv bm3": (
        "--methods: given bm3; allowed: one or more of tv, bm3d, zero_filled (did you mean bm3d?)"
    ),
    "--sigma aut": "--sigma: given aut; allowed: a number above 0 or auto (did you mean auto?)",
    "--progress maybe": "--progress: given maybe; allowed: yes or no",
    "--no_progress=false": "--no_progress: given false; it takes no value",
    "--compile=maybe": "--compile: given maybe; allowed: yes or no",
    "--devices 0,": "--devices: given 0,; allowed: auto, a number, or indices as 0,1",
    "--strategy dpp": (
        "--strategy: given dpp; allowed: auto, ddp, fsdp, deepspeed or another that Lightning knows"
    ),
    "--batch 4": "--batch: no such flag (did you mean --batch_size?)",
    "--Batch-Size 4": "--Batch_Size: no such flag (did you mean --batch_size?)",
    "--quux": "--quux: no such flag; --help_all lists the flags",
    "--name refused": "--name: given refused; allowed: other names",
    "--challenge knee": "--challenge: given knee; allowed: singlecoil, multicoil",
    "--challenge multi-coil": (
        "--challenge: given multi-coil; allowed: singlecoil, multicoil (did you mean multicoil?)"
    ),
}


@pytest.mark.parametrize("words", ALLOWED)
def test_refused_words(words):
    assert refused(*REQUIRED, *words.split()) == ALLOWED[words]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--challenge: missing; give one of singlecoil, multicoil"),
        ("extra", "given extra without a flag; flags begin with --"),
        ("-- extra", "given extra without a flag; flags begin with --"),
        ("-challenge singlecoil", "given -challenge without a flag; flags begin with --"),
    ],
)
def test_what_is_missing_or_too_much(words, message):
    assert refused(*words.split()) == message


def test_positional_words():
    words = ["a.png", "b", "--out", "O", "--overwrite", "c", "--sigma", "3", "d", "--", "--e"]
    config = parse_config(WithFiles, words)
    assert config == WithFiles(
        inputs=tuple(map(Path, ("a.png", "b", "c", "d", "--e"))),
        out=Path("O"),
        overwrite=True,
        sigma=3.0,
    )
    message = "inputs: missing; give one or more files or folders; --out is missing too"
    assert refused(config_class=WithFiles) == message


@pytest.mark.parametrize("value", [12, True, 1.5, ["a"], {"a": 1}])
def test_yaml_values_that_may_be_misread_are_no_text(value):
    # YAML 1.1 makes 12 of 014; whoever means a text puts it in quotes.
    with pytest.raises(InputError, match=r"^--name: given .*; allowed: text$"):
        config_from(Config, {"challenge": "singlecoil", "name": value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": True}, "--batch_size: given yes; allowed: a whole number above 0"),
        ({"batch_size": 1.5}, "--batch_size: given 1.5; allowed: a whole number above 0"),
        ({"batch_size": [4]}, "--batch_size: given 4; allowed: a whole number above 0"),
        ({"seed": None}, "--seed: given null; allowed: a whole number from 0"),
        ({"channels": True}, "--channels: given yes; allowed: 1, 3"),
        ({"compile": 1}, "--compile: given 1; allowed: yes or no"),
        ({"accel": [4, None]}, "--accel: given 4 null; allowed: one or more whole numbers above 0"),
        ({"lrr": 1}, "--lrr: no such flag (did you mean --lr?)"),
        ({"no_progress": True}, "--no_progress: no such flag (did you mean --progress?)"),
    ],
)
def test_refused_values(values, message):
    with pytest.raises(InputError) as caught:
        config_from(Config, {"challenge": "singlecoil", **values})
    assert str(caught.value) == message


def test_a_config_file_is_read_by_the_flags_types(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "lr: 1e-3\nseed: 012\nname: 012\naccelerations: [4, 8]\nbatch-size: 3\nsigma: ~\n"
        "val_images: null\nrun: A\nprogress: off\nchallenge: multicoil\n"
    )
    config = parse_config(Config, ["--lr", "2", "--config", str(file), "--run", "B"])
    wanted = Config(
        challenge="multicoil",
        lr=2.0,
        seed=12,
        name="012",
        accel=(4, 8),
        batch_size=3,
        val_images=None,
        run=(Path("B"),),
        progress=False,
    )
    assert config == wanted
    second = tmp_path / "d.yaml"
    second.write_text("seed: 1\n")
    both = parse_config(Config, ["--config", str(file), str(second)])
    assert (both.seed, both.lr) == (1, 0.001)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"--config: .*c\.yaml cannot be read \(No such file or directory\)"),
        ("a: [", r"--config: .*c\.yaml: no YAML \(.*\)"),
        ("- 1", r"--config: .*c\.yaml holds no flags with their values, as batch_size: 4"),
        ("", r"--config: .*c\.yaml holds no flags with their values, as batch_size: 4"),
        ("batchsize: 1", r".*c\.yaml: --batchsize: no such flag \(did you mean --batch_size\?\)"),
        ("batch_size: 0", r".*c\.yaml: --batch_size: given 0; allowed: a whole number above 0"),
        ("accel: 4,8", r".*c\.yaml: --accel: given 4,8; give 4 8"),
    ],
)
def test_config_files_that_cannot_be_used(tmp_path, text, message):
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=f"^{message}$"):
        parsed("--config", str(tmp_path / "c.yaml"))


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)


@given(
    st.builds(
        Config,
        challenge=st.sampled_from(["singlecoil", "multicoil"]),
        accel=st.none() | st.lists(st.integers(1, 99), min_size=1).map(tuple),
        run=st.lists(texts.map(Path), max_size=3).map(tuple),
        lr=st.none() | st.floats(0, exclude_min=True, allow_infinity=False, allow_nan=False),
        seed=st.integers(0),
        img_size=st.none() | st.integers() | st.tuples(st.integers(), st.integers()),
        name=st.none() | texts.filter(lambda t: t not in ("null", "~", "refused")),
        progress=st.booleans(),
        augment=st.none() | st.booleans(),
        devices=st.sampled_from(["auto", "1", "0,1", "012"]),
    )
)
def test_what_print_config_prints_is_read_back(tmp_path_factory, config):
    words = []
    for name in ("challenge", "accel", "run", "lr", "seed", "img_size", "name", "devices"):
        value = getattr(config, name)
        if value not in (None, ()):
            listed = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}={item}" for item in listed]
    words += [] if config.progress else ["--no_progress"]
    words += {None: [], True: ["--augment"], False: ["--no_augment"]}[config.augment]
    assert parse_config(Config, words) == config
    file = tmp_path_factory.mktemp("c") / "c.yaml"
    with pytest.MonkeyPatch.context() as patch, file.open("w", encoding="utf-8") as out:
        patch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit):
            parse_config(Config, [*words, "--print_config"])
    assert parse_config(Config, ["--config", str(file)]) == config


def test_print_config_needs_no_required_flags(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config(Config, ["--print_config", "--accel", "4"])
    assert ended.value.code == 0
    content = yaml.safe_load(capsys.readouterr().out)
    assert content["accel"] == [4]
    assert content["seed"] == 42
    assert "challenge" not in content


@pytest.fixture
def with_models(monkeypatch):
    options = [
        Option("depth", int, 4, "layers"),
        Option("kind", str, "a", "text"),
        Option("rate", float, 0.1, "number"),
        Option("img_size", int | tuple[int, int], None, "H W"),
        Option("in_chans", int, 1, "never a flag"),
    ]
    monkeypatch.setattr(zoo, "options_of_all", lambda models: {o.name: o for o in options})
    return {"plain": None, "other_net": None}


def test_options_of_the_network_are_flags(with_models):
    def options(*words):
        return parse_config(WithNetwork, words, models=with_models).options

    assert options() == {}
    assert options("--depth", "012", "--kind", "012", "--rate", "1e-3") == {
        "depth": 12,
        "kind": "012",
        "rate": 0.001,
    }
    assert options("--img_size", "3", "4") == {"img_size": (3, 4)}
    config = config_from(WithNetwork, {"depth": 3, "rate": None}, with_models)
    assert config.options == {"depth": 3}
    with pytest.raises(InputError, match=r"^--depth: given x; allowed: a whole number$"):
        options("--depth", "x")
    with pytest.raises(InputError, match="no such flag"):
        options("--in_chans", "3")
    with pytest.raises(InputError, match="no such flag"):
        parse_config(WithNetwork, ["--options", "3"], models=with_models)


def test_the_network_is_one_of_the_models(with_models):
    message = r"^--model: given othernet; allowed: plain, other_net \(did you mean other_net\?\)$"
    with pytest.raises(InputError, match=message):
        parse_config(WithNetwork, ["--model", "othernet"], models=with_models)
    assert parse_config(WithNetwork, ["--model", "other_net"], models=with_models).model


def help_of(capsys, *words: str, **arguments: Any) -> list[str]:
    with pytest.raises(SystemExit) as ended:
        parse_config(Config, words, prog="train.py", **arguments)
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_help_shows_required_flags_first_then_groups(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    lines = help_of(capsys, "--help", defaults=lambda: {"lr": "0.1 (built-in data: 0.2)"})
    assert lines[:3] == [
        "usage: train.py --challenge CHALLENGE [flags]",
        "",
        "Train a thing. And more.",
    ]
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["required:", "data:", "training:", "run:", "help:"]
    text = " ".join(" ".join(lines).split())
    assert "--challenge which challenge [one of singlecoil, multicoil]" in text
    assert "--accel accelerations [one or more whole numbers above 0; also --accelerations]" in text
    assert "--lr highest rate [a number above 0; default: 0.1 (built-in data: 0.2)]" in text
    assert "--[no_]progress bars [default: yes]" in text
    assert "--seed" not in text
    assert max(map(len, lines)) <= 100


def test_help_all_shows_every_flag(capsys):
    lines = help_of(capsys, "--help_all")
    names = {line.split()[0] for line in lines if line.startswith("  --")}
    for name, item in flags_of(Config).items():
        assert {f"--{name}", f"--[no_]{name}"} & names, item
    text = " ".join(" ".join(lines).split())
    assert "--val_images at most [a whole number, or null; default: 100]" in text
    assert "--sigma of the noise [a number above 0 or auto]" in text
    assert "--methods rivals [one or more of tv, bm3d, zero_filled; default: tv]" in text
    assert "--compile compile" in text


@pytest.mark.parametrize("words", [["-h"], ["--seed", "3", "--help"], ["--help", "--accel", "x"]])
def test_help_is_had_with_any_other_words(capsys, words):
    assert help_of(capsys, *words)[0].startswith("usage: train.py")


def test_defaults_are_asked_for_help_only(capsys):
    def never() -> Mapping[str, str]:
        raise AssertionError

    parse_config(Config, REQUIRED, defaults=never)


def test_typed_for_a_flag_of_ones_own():
    item = Flag("size", tuple[int, int], None, "")
    assert typed(item, ["3", 4]) == (3, 4)
    with pytest.raises(InputError, match=r"^--size: given 3; allowed: 2 whole numbers$"):
        typed(item, 3)


def test_a_copy_of_a_config_needs_no_words():
    assert replace(parsed(), seed=3).seed == 3


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("InputError('--x: no')", 2, "error: --x: no\n"),
        # As it arrives from a loader's process, with that process's traceback in front.
        (
            "InputError('Caught in worker.\\n  File x\\nimg2img_recon.support.errors.InputError: a: b')",
            2,
            "error: a: b\n",
        ),
        ("KeyboardInterrupt", 130, "interrupted\n"),
        (
            "OSError(28, 'No space left on device')",
            2,
            "error: a file of this run cannot be written (No space left on device); "
            "make room and start the same command again\n",
        ),
        ("InputError('caf\\udce9.png: no')", 2, "error: caf\\udce9.png: no\n"),
    ],
)
def test_how_a_script_ends(error, code, said):
    program = (
        "from img2img_recon.support.cli import run_script\n"
        "from img2img_recon.support.errors import InputError\n"
        f"def main(): raise {error}\n"
        "run_script(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def test_names_that_are_no_text_can_be_printed():
    program = (
        "from img2img_recon.support.cli import run_script\n"
        "run_script(lambda: print('caf\\udce9 \u5199'))"
    )
    for encoding, said in (("utf-8", "caf\\udce9 \u5199\n"), ("ascii", "caf\\udce9 \\u5199\n")):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            check=False,
        )
        assert (done.returncode, done.stdout.decode()) == (0, said), done.stderr


def test_a_script_that_is_done_ends_with_0():
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: None)
    assert ended.value.code == 0


def test_a_script_without_basic_flags_shows_all_of_them(capsys):
    with pytest.raises(SystemExit):
        parse_config(WithFiles, ["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in ("inputs ", "--out ", "--sigma ", "--overwrite "))
    assert "usage: " in text
    assert " INPUTS ... --out OUT [flags]" in text
