"""The text of `--help`: required flags first, then groups, types in words, defaults as they come out."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping

from img2img_recon.support.flags import GROUPS, Flag
from img2img_recon.support.values import shown

Defaults = Callable[[], Mapping[str, str]]
WIDEST_NAME = 24


def help_text(
    flags: Collection[Flag],
    own: Iterable[Flag],
    prog: str,
    summary: str,
    defaults: Defaults | None,
    every: bool,
) -> str:
    """What `--help` prints.

    Args:
        flags: of the script.
        own: of all scripts, listed last.
        prog: the command's name.
        summary: one sentence on what it does.
        defaults: gives words for defaults by name, where a flag's own is None.
        every: show all flags, not just the required and basic ones.
    """
    known = defaults() if defaults else {}
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 110)
    required = [item for item in flags if item.required]
    basic = [item for item in flags if item.basic and not item.required]
    # A script without basic flags has few: all of them are shown.
    chosen = basic if basic and not every else flags
    sections = {"required": required}
    for group in GROUPS:
        sections[group] = [i for i in chosen if i.group == group and not i.required]
    sections["help"] = list(own)
    usage = f"usage: {' '.join([prog, *map(_usage, required)])} [flags]"
    lines = [*textwrap.wrap(usage, width), "", *textwrap.wrap(summary, width)]
    for title, items in sections.items():
        if items:
            lines += ["", f"{title}:"]
            lines += [line for item in items for line in _rows(item, known, width)]
    return "\n".join(lines)


def _usage(item: Flag) -> str:
    value = item.name.upper() + (" ..." if item.several else "")
    return value if item.positional else f"{item.spelling} {value}"


def _rows(item: Flag, known: Mapping[str, str], width: int) -> list[str]:
    name = f"--[no_]{item.name}" if item.switch and item.default is not False else item.spelling
    details = [] if item.switch else [item.allowed]
    if item.name in known:
        details.append(f"default: {known[item.name]}")
    elif not item.required and item.default not in (None, False, ()):
        details.append(f"default: {shown(item.default)}")
    details += [f"also --{alias}" for alias in item.aliases]
    text = item.help + (f" [{'; '.join(details)}]" if details else "")
    rows = textwrap.wrap(text, width - WIDEST_NAME - 2, break_on_hyphens=False)
    first = f"  {name:<{WIDEST_NAME}}"
    if len(name) >= WIDEST_NAME:
        return [first.rstrip(), *(" " * (WIDEST_NAME + 2) + row for row in rows)]
    return [first + rows[0], *(" " * (WIDEST_NAME + 2) + row for row in rows[1:])]
