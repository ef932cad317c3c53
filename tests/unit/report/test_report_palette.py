from __future__ import annotations

from expertweaver.report import palette


def test_many_models_never_share_both_colour_and_marker() -> None:
    looks = [(palette.model_color(i, True), palette.model_mark(i, True)) for i in range(66)]
    assert len(set(looks)) == 66
