"""Lines for people, above a bar on a terminal."""

from __future__ import annotations

from flaxbert.track.console import Console


def test_a_bar_on_a_terminal_and_plain_lines_elsewhere(capsys):
    tracker = Console(2, bar=True)
    tracker.text("update 1")
    tracker.advance()
    tracker.close()
    shown = capsys.readouterr().err
    assert "update 1" in shown and "/2" in shown
    tracker = Console(2, bar=False)
    tracker.text("update 1")
    tracker.advance()
    tracker.close()
    assert capsys.readouterr().err == "update 1\n"
