"""What a run says of itself where nobody looks at a terminal."""

from __future__ import annotations

import time
from typing import Any

import pytest

from splatpipe.progress import Counter, RunProgress


def step(at: int, total: int) -> dict[str, Any]:
    return {"event": "step", "step": at, "total": total, "loss": 0.1234, "gaussians": 500, "steps_per_s": 10.0}


def test_a_line_says_what_is_done_what_trains_and_what_is_left() -> None:
    progress = RunProgress({"p000": 100, "p001": 100, "p002": 100}, batch=True)
    assert progress.line() == "0 of 3 patches done; time left unknown"
    for patch in ("p000", "p001"):
        progress.event(patch, {"event": "start", "resumed_from": None})
        progress.event(patch, step(50, 100))
    progress.finished("p000")
    line = progress.line()
    progress.close()
    assert line.startswith("1 of 3 patches done, training: p001 50/100 loss 0.1234 500 Gaussians 10.0 steps/s; about ")


def test_a_line_comes_by_itself_even_when_no_step_does(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RunProgress({"p000": 100}, batch=True, every_s=0.01)
    said = ""
    while said.count("\n") < 2:
        time.sleep(0.01)
        said += capsys.readouterr().err
    progress.close()
    assert set(said.splitlines()) == {"0 of 1 patches done; time left unknown"}


def left(costs: dict[str, float]) -> float:
    """The time left, in units of the time spent, after the first of two patches of 100 steps has trained."""
    progress = RunProgress({"p000": 100, "p001": 100}, batch=True)
    progress.weigh(costs)
    progress._started = time.monotonic() - 1000.0
    progress.event("p000", {"event": "start", "resumed_from": None})
    progress.finished("p000")
    minutes, seconds = progress.line().split("about ")[1].split(" left")[0].split(":")[-2:]
    progress.close()
    return (60 * int(minutes) + int(seconds)) / 1000.0


def test_a_step_of_a_large_patch_counts_for_more() -> None:
    assert left({}) == pytest.approx(1.0, abs=0.1)
    assert left({"p000": 2.0, "p001": 1.0}) == pytest.approx(0.5, abs=0.1)


def test_renders_are_counted_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    counter = Counter("hold-out views", "render", 3, every_s=0)
    for _ in range(3):
        counter.step()
    counter.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in lines] == [f"hold-out views: {n} of 3 renders" for n in (1, 2, 3)]
    assert lines[-1].endswith("about 00:00 left")
    Counter("hold-out views", "render", 3).step()
    assert not capsys.readouterr().err, "no line before a minute is over"
