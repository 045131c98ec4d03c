"""Fenced code blocks of Markdown files, and what is to be done with each."""

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^( *)(`{3,})(.*)$")
NOT_RUN = re.compile(r"^<!-- not run: (.+?) -->$")
RUN_BY = {"sh": "bash", "python": "python3", "javascript": "node"}


class Unclassed(Exception):
    """A block of which nobody has said what it is."""


@dataclass
class Block:
    """One fenced block."""

    file: Path
    line: int
    language: str
    text: str
    # Why it isn't run, where the comment before it says so.
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.file.name}:{self.line}"

    @property
    def kind(self) -> str:
        """run: as it stands; checked: only what it names; parsed: JSON; compiled: a region of tests/it/docs.rs."""
        if self.language in RUN_BY:
            return "checked" if self.reason else "run"
        if self.language == "json":
            return "parsed"
        if self.language == "rust":
            return "compiled"
        known = ", ".join([*RUN_BY, "json", "rust"])
        raise Unclassed(
            f"{self.place}: a block in `{self.language}`: write one of {known} behind the backticks, with "
            "`<!-- not run: why -->` in the line before where it can't be run"
        )


def blocks_of(file: Path, text: str | None = None) -> list[Block]:
    """The blocks of a file in their order."""
    lines = (file.read_text() if text is None else text).splitlines()
    blocks, number = [], 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if not fence:
            number += 1
            continue
        indent, ticks, language = fence.groups()
        begin = number + 1
        end = begin
        while end < len(lines) and lines[end].strip() != ticks:
            end += 1
        if end == len(lines):
            raise Unclassed(f"{file.name}:{begin}: the block is not closed")
        before = [line.strip() for line in lines[:number] if line.strip()]
        reason = NOT_RUN.match(before[-1]) if before else None
        body = "\n".join(line.removeprefix(indent) for line in lines[begin:end]) + "\n"
        blocks.append(Block(file, begin, language.strip(), body, reason and reason.group(1)))
        number = end + 1
    return blocks
