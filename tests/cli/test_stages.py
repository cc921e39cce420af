"""What a long command says while it works: lines on standard error and in a log file."""

from __future__ import annotations

import pytest

from fastmalade.cli.stages import Stages


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_lines(clock, tmp_path, capsys):
    log = tmp_path / "run.log"
    log.write_text("of an earlier run")
    stages = Stages(log, clock)
    stages.say("two stages")
    with stages.stage("walking") as advance:
        for step in range(8):
            clock.now += 1.5
            advance(step + 1, 8, f"mile {step + 1}")
    with stages.stage("resting"):
        clock.now += 0.25
    lines = log.read_text().splitlines()
    assert lines == [
        "[   0.0 s] two stages",
        "[   0.0 s] walking ...",
        "[   6.0 s] walking: mile 4, 50%",
        "[  12.0 s] walking: mile 8, 100%",
        "[  12.0 s] walking: done in 12.0 s",
        "[  12.0 s] resting ...",
        "[  12.2 s] resting: done in 0.2 s",
    ]
    assert stages.seconds == {"walking": 12.0, "resting": 0.25}
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert captured.out == ""


def test_an_interruption_is_said(clock, tmp_path):
    log = tmp_path / "run.log"
    stages = Stages(log, clock)

    def interrupted():
        with stages.stage("walking"):
            clock.now += 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert log.read_text().splitlines()[-1] == "[   3.0 s] walking: stopped after 3.0 s"
    assert stages.seconds == {}
