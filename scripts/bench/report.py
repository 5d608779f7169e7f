"""Samples to ratios, ratios to a table, the table into its place in a document."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    low: float
    middle: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value."""
        if len(values) < 2:
            return Spread(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(low, middle, high)

    def times(self, factor: float) -> Spread:
        """Scaled."""
        return Spread(self.low * factor, self.middle * factor, self.high * factor)

    def show(self, form: Callable[[float], str]) -> str:
        """``middle (low-high)``."""
        return f"{form(self.middle)} ({form(self.low)}-{form(self.high)})"

    def json(self) -> list[float]:
        """Low, middle, high to four digits."""
        return [float(f"{value:.4g}") for value in (self.low, self.middle, self.high)]


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the round-by-round ratios: both were measured in the same round, so a busy machine slows both."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=False)])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded for reading as text."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def add_report_options(parser: argparse.ArgumentParser, section: str, rounds: int) -> None:
    """--rounds, at least the two of a spread, and --write."""

    def some(text: str) -> int:
        if int(text) < 2:
            raise argparse.ArgumentTypeError("give 2 or more")
        return int(text)

    parser.add_argument("--rounds", type=some, default=rounds)
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"document with a place <!-- {section} --> to fill")


def write_section(path: Path, name: str, text: str | None) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->`` of a document, all of it or nothing.

    With text None it only looks for the place: to be called before minutes of measuring.

    Raises:
        SystemExit: the document has no such place.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    document = path.read_text() if path.exists() else ""
    head, found, rest = document.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{path}: has no place for the table: write a line {begin} and a line {end} into it")
    if text is not None:
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(f"{head}{begin}\n{text.strip()}\n{end}{tail}")
        os.replace(beside, path)


def publish(machine: Mapping[str, str], findings: str, path: Path | None, name: str) -> None:
    """Print what was found, below the machine that it was found on; with a path also write it into that section."""
    text = "\n".join([*(f"- {key}: {value}" for key, value in machine.items()), findings])
    print(text)
    if path:
        write_section(path, name, text)
