from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console
from support.reports import HOSTILE, LOSS, evaluation, speed

from expertweaver.evaluation.results import Evaluation
from expertweaver.report import quality_markdown, render_table


def printed(width: int, evaluated: Evaluation) -> list[str]:
    console = Console(width=width, file=StringIO(), color_system=None)
    console.print(render_table(evaluated, speed()))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().replace("\u00a0", " ").splitlines()


def cells(lines: list[str], start: str) -> list[str]:
    line = next(line for line in lines if line.strip().startswith(start))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_six_domains_fit_in_120_columns() -> None:
    lines = printed(120, evaluation())
    assert all(name in "\n".join(lines) for name in (*LOSS, "random-50"))
    assert cells(lines, "active") == ["active parameters", "596 M", "532 M", "466 M", "466 M"]
    assert cells(lines, "code") == ["code", "1.412 (4.10)", "1.536 (4.65)", "1.853 (6.38)", "2.718 (15.16)"]
    assert cells(lines, "difference") == ["difference to dense", "–", "+0.091", "+0.323", "+0.958"]
    assert cells(lines, "decode tokens/s")[1:3] == ["21.4", "23.9"]
    assert cells(lines, "decode time")[1:3] == ["1.00× (1.00×)", "0.90× (0.89×)"]
    assert max(map(len, lines)) <= 120


def test_names_are_not_read_as_markup() -> None:
    whole = evaluation()
    renamed = replace(whole.models[1], name="[red]x[/red]")
    lines = printed(120, replace(whole, models=(whole.models[0], renamed)))
    assert any("[red]x[/red]" in line for line in lines)


def test_markdown_has_a_row_for_every_model_and_domain() -> None:
    lines = quality_markdown(evaluation()).replace("\u00a0", " ").splitlines()
    assert "| expertweaver-25 | 597,884,928 | 531,824,640 |" in lines
    assert "| all | expertweaver-25 | 2.497 | 2.417 to 2.582 | +0.091 | 12.15 | 0.077 | 97.0 % |" in lines
    assert sum(line.startswith("| ") for line in lines) == 2 + 4 + 2 + 4 * 7
    assert len({line.count("|") for line in lines if line.startswith("| all")}) == 1


def test_markdown_keeps_hostile_names_as_text() -> None:
    whole = evaluation()
    renamed = replace(whole.models[1], name=f"a|b\n{HOSTILE}[x](y)")
    written = quality_markdown(replace(whole, models=(whole.models[0], renamed)))
    assert "a\\|b &lt;script&gt;alert(1)&lt;/script&gt;\\[x\\](y)" in written
    assert "<" not in written
