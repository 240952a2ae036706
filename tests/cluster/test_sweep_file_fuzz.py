"""Damaged sweep and site files: runs or one line with the file's name, never a traceback or a hang.

`FUZZ=1000` damages that many (see docs/RELIABILITY.md).
"""

from __future__ import annotations

import os
import random
import re
import time

from cluster.sweep_file import read_sweep
from img2img_recon.support.errors import InputError

COUNT = int(os.environ.get("FUZZ", "150"))
LONGEST_S = 20.0  # on a machine that does other things too; alone, a file takes milliseconds
SWEEP = """\
name: fig_2
task: gaussian
base: {sigma: 30, max_epochs: 60, lr: 1e-3, batch_size: 12}
axes:
  list:
    - {model: img2img_mixer, embed_dim: 64, tags: {size: small}}
    - {model: unet, resources: {gpus_per_node: 2}}
  zip: {lr: [1e-3, 5e-4], tags.kind: [a, b]}
  grid:
    seed: [0, 1, 2]
needs: [data_path]
resources: {timeout_min: 24:00:00, account: 0012345, gpus_per_node: 1}
plots: [{x: parameters, y: psnr, fit: true}]
"""
SITE = """\
resources: {partition: gpu, timeout_min: 60}
base:
  gaussian: {data_path: /data/images, num_workers: 4}
"""
VALUES = (
    *("null", "~", "''", "true", "no", "-1", "0", "1e400", "-.inf", ".nan", "1e-3", "012", "0x1F"),
    *("24:00:00", "1-99:99:99", "2024-02-30", "2024-01-31", "[]", "{}", "[[1], {a: b}]", "{a: 1}"),
    *("'$HOME #1'", "!!binary QQ==", "!thing x", "*a", "&a 1", "&a [*a]", "? x", "\\udce9", "\\0"),
    *(
        "9" * 400,
        "a" * 9000,
        "\u5199",
        "<<",
        "=",
        "|\n  x",
        "seed",
        "tags.x",
        "grid",
        "img2img_mixer",
    ),
)
WORD = re.compile(r"[\w.$/-]+")


def damaged(text: str, rng: random.Random) -> str:
    """One to three things done to a text: a word replaced, a line taken, doubled or moved, a sign added."""
    for _ in range(rng.randint(1, 3)):
        lines = text.splitlines(keepends=True) or ["\n"]
        row = rng.randrange(len(lines))
        match rng.randint(0, 5):
            case 0 | 1:
                if words := list(WORD.finditer(text)):
                    word = rng.choice(words)
                    text = text[: word.start()] + rng.choice(VALUES) + text[word.end() :]
            case 2:
                text = "".join(lines[:row] + lines[row + 1 :])
            case 3:
                text = "".join([*lines[:row], lines[row], *lines[row:]])
            case 4:
                text = "".join([*lines[:row], rng.choice(("  ", "\t", "- ")), *lines[row:]])
            case 5:
                place = rng.randrange(len(text) + 1)
                text = text[:place] + rng.choice("{}[],:#&*!|>'\"%@`? \n\0\u5199") + text[place:]
    return text


def test_a_damaged_sweep_is_read_or_refused(tmp_path):
    file, site, rng, read = tmp_path / "s.yaml", tmp_path / "site.yaml", random.Random(0), 0
    for number in range(COUNT + 1):
        kind = number % 4
        file.write_text(damaged(SWEEP, rng) if kind in (1, 2) else SWEEP, encoding="utf-8")
        site.write_text(damaged(SITE, rng) if kind == 3 else SITE, encoding="utf-8")
        begin = time.perf_counter()
        try:
            sweep, refusal = read_sweep(file, site), ""
        except InputError as error:
            refusal = str(error)
        assert time.perf_counter() - begin < LONGEST_S
        if refusal:
            assert refusal.startswith((f"{file}:", f"{site}:")), (refusal, file.read_text())
            assert "\n" not in refusal
            assert kind
        else:
            assert len(sweep.ids) == len(set(sweep.ids))
            read += 1
    assert read > COUNT / 4
