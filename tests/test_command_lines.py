"""Every flag of every script: a wrong word is one line that names it; help is short and starts at once."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from img2img_recon.support import cli
from img2img_recon.support.errors import InputError
from img2img_recon.support.flags import Flag
from img2img_recon.support.values import choices, fit

ROOT = Path(__file__).parent.parent
HELP_LINES = 60
SWEEP = ("submit", "status", "resubmit", "cancel", "collect", "plot")
# A script and the words that come before its flags, one row per set of flags.
COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fastmri_plugin/train.py", ()),
    ("fastmri_plugin/evaluate.py", ()),
    ("fastmri_plugin/export_submission.py", ()),
    ("fastmri_plugin/convert.py", ()),
    ("fastmri_plugin/freeze_split.py", ()),
    ("fastmri_plugin/reconstruct.py", ()),
    ("denoise_tasks/train.py", ()),
    ("denoise_tasks/evaluate.py", ()),
    ("denoise_tasks/denoise.py", ()),
    ("denoise_tasks/untrained.py", ()),
    *(("cluster/sweep.py", (command,)) for command in SWEEP),
    ("cluster/launch.py", ()),
    ("img2img_recon/export.py", ()),
)
HEAVY = ("torch", "pytorch_lightning", "fastmri", "scipy", "skimage", "matplotlib", "h5py")
WRONG = ("quux", "-1.5", "1e9x", "0", "4;8", "12:30")

every_command = pytest.mark.parametrize(
    ("script", "before"), COMMANDS, ids=[" ".join([s, *b[:1]]) for s, b in COMMANDS]
)


@pytest.fixture
def flags_and_main(
    script, before, monkeypatch, capsys
) -> tuple[dict[str, Flag], Callable[..., Any]]:
    """The flags that a script's parser knows, as it builds them, and its `main`."""
    seen: list[dict[str, Flag]] = []
    original = cli.flags_of

    def record(*arguments: Any) -> dict[str, Flag]:
        seen.append(original(*arguments))
        return seen[-1]

    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    with monkeypatch.context() as patch:
        patch.setattr(cli, "flags_of", record)
        with pytest.raises(SystemExit):
            main([*before, "--help"])
    capsys.readouterr()
    return seen[0], main


def some_words(flag: Flag, wanted: int = 1) -> list[str]:
    """Words that a flag takes, at least so many."""
    for word in (*choices(flag.type), "1", "0.5", "x"):
        for words in ([word], [word, word]):
            if len(words) >= wanted and fits(flag, words[0] if len(words) == 1 else words):
                return words
    raise AssertionError(flag)


def fits(flag: Flag, value: Any) -> bool:
    try:
        fit(flag.type, value)
    except ValueError:
        return False
    return True


def required_words(flags: dict[str, Flag], before: Sequence[str], but: Flag) -> Iterator[str]:
    for flag in flags.values():
        if flag.required and flag != but and flag.spelling not in before:
            yield from (*([] if flag.positional else [flag.spelling]), *some_words(flag))


def refusal(main: Callable[..., Any], words: Sequence[str]) -> str:
    with pytest.raises(InputError) as caught:
        main(list(words))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


@every_command
def test_wrong_words_of_every_flag(script, before, flags_and_main):
    flags, main = flags_and_main
    refused = set()
    for name, flag in flags.items():
        if flag.positional or flag.spelling in before:
            continue
        required = [*before, *required_words(flags, before, flag)]
        for word in WRONG:
            if not fits(flag, word):
                refused.add(name)
                message = refusal(main, [*required, f"{flag.spelling}={word}"])
                assert message.startswith(f"{flag.spelling}: given {word}; allowed: "), message
        for choice in choices(flag.type):
            near = choice[:-1] + ("" if len(choice) > 4 else choice[-1] * 2)
            if len(choice) > 3 and near not in choices(flag.type):
                message = refusal(main, [*required, f"{flag.spelling}={near}"])
                assert "(did you mean " in message, message
        if not flag.switch:
            message = refusal(main, [*required, flag.spelling])
            assert message.startswith(f"{flag.spelling}: given without a value; give "), message
    named = {name: flag for name, flag in flags.items() if not flag.positional}
    assert refused >= {name for name, flag in named.items() if not is_text(flag)}


def is_text(flag: Flag) -> bool:
    """Whether any word fits."""
    return fits(flag, "no such word 4;8")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("fastmri_plugin/train.py", "--challenge singlecoil --baselines tvv"),
        ("fastmri_plugin/reconstruct.py", "--challenge singlecoil --out OUT --method tvv"),
        ("fastmri_plugin/evaluate.py", "--challenge singlecoil --method tvv"),
        ("denoise_tasks/denoise.py", "PICTURES --out OUT --method tvv"),
        ("denoise_tasks/evaluate.py", "--data_path PICTURES --method tvv"),
        ("denoise_tasks/untrained.py", "--model vitt"),
    ],
)
def test_names_that_tables_hold(script, words, tmp_path, monkeypatch):
    # Methods can be added while a script runs: their names are looked up, not types.
    monkeypatch.chdir(tmp_path)
    Path("PICTURES").mkdir()
    Image.new("RGB", (16, 16)).save("PICTURES/a.png")
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    message = refusal(main, words.split())
    *_, flag, given = words.split()
    assert message.startswith(f"{flag}: given {given}"), message
    assert not (tmp_path / "OUT").exists()


@every_command
def test_near_misses_of_every_flags_name(script, before, flags_and_main):
    flags, main = flags_and_main
    known = {spelling for flag in flags.values() for spelling in flag.spellings}
    for name, flag in flags.items():
        miss = name[:-1] if len(name) > 3 else name + "x"
        if not flag.positional and miss not in known and before[:1] != (f"--{miss}",):
            message = refusal(main, [*before, f"--{miss.replace('_', '-')}", "1"])
            assert message.startswith(f"--{miss}: no such flag (did you mean --"), message


@every_command
def test_required_flags_are_asked_for(script, before, flags_and_main):
    flags, main = flags_and_main
    for flag in flags.values():
        if flag.required and flag.spelling not in before:
            message = refusal(main, [*before, *required_words(flags, before, flag)])
            assert message == f"{flag.spelling}: missing; give {flag.allowed}"


@every_command
def test_flags_are_told_apart_from_words(script, before, flags_and_main):
    flags, main = flags_and_main
    if not any(flag.positional for flag in flags.values()) and script != "cluster/launch.py":
        assert (
            refusal(main, [*before, "--", "quux"])
            == "given quux without a flag; flags begin with --"
        )


@every_command
def test_values_of_several_words(script, before, flags_and_main):
    flags, main = flags_and_main
    for flag in flags.values():
        if flag.several and not flag.positional and not is_text(flag):
            words = some_words(flag, 2)
            required = [*before, *required_words(flags, before, flag)]
            message = refusal(main, [*required, flag.spelling, ",".join(words)])
            assert message == f"{flag.spelling}: given {','.join(words)}; give {' '.join(words)}"


def console_commands() -> list[str]:
    """What `pip install` makes commands of, as module:function."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^img2img-[a-z-]+ = "([a-z0-9_.]+:main)"$', text, re.MULTILINE)


def test_every_script_is_a_console_command():
    named = {f"{entry.removesuffix(':main').replace('.', '/')}.py" for entry in console_commands()}
    assert named == {script for script, _ in COMMANDS}


@pytest.mark.parametrize("entry", console_commands())
def test_console_commands_end_as_scripts_do(entry, monkeypatch, capsys):
    main = importlib.import_module(entry.removesuffix(":main")).main
    monkeypatch.setattr(sys, "argv", ["img2img-command", "--quux=1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def run(script: str, *words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *(["-c", code] if code else []), str(ROOT / script), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        timeout=300,
    )


# Prints the modules that are there when the script has ended.
IMPORTED = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = ""
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(("script", "before"), [*COMMANDS, ("cluster/sweep.py", ())])
def test_help_is_short_and_imports_nothing_heavy(script, before):
    done = run(script, *before, "--help", code=IMPORTED)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) < HELP_LINES
    assert max(map(len, lines)) <= 100
    imported = done.stderr.split("imported: ")[1].split()
    assert {*HEAVY} & {*imported} == set()


@every_command
def test_help_names_defaults_and_types(script, before, flags_and_main, capsys):
    flags, main = flags_and_main
    with pytest.raises(SystemExit):
        main([*before, "--help_all"])
    out, err = capsys.readouterr()
    assert err == ""
    assert "null" not in out.replace("or null", "")
    headings = [line for line in out.splitlines() if line and line[0] != " "][1:]
    groups = ["required:", "data:", "network:", "training:", "run:", "cluster:", "help:"]
    assert [line for line in headings if line in groups] == [g for g in groups if g in headings]
    text = " ".join(out.split())
    for flag in flags.values():
        assert f"{flag.spelling} " in text or f"--[no_]{flag.name} " in text
        if not flag.switch:
            assert flag.allowed in text


@pytest.mark.parametrize("script", dict.fromkeys(script for script, _ in COMMANDS))
def test_a_script_ends_with_one_line_and_status_2(script):
    done = run(script, "--quux=1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "quux" in done.stderr
