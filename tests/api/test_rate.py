"""The sliding window: what is let through, what waits and for how long."""

from __future__ import annotations

from fusion_tui.api.rate import Window


def test_a_window_lets_so_many_through_and_says_how_long_the_next_waits():
    now = [0.0]
    window = Window(2, 60, lambda: now[0])
    assert [window.wait("a"), window.wait("a"), window.wait("a")] == [0, 0, 60]
    now[0] = 20
    assert (window.wait("a"), window.wait("b")) == (40, 0)
    now[0] = 60
    assert [window.wait("a"), window.wait("a"), window.wait("a")] == [0, 0, 60]


def test_what_was_refused_does_not_count():
    now = [0.0]
    window = Window(1, 10, lambda: now[0])
    window.wait("a")
    for now[0] in (3.0, 6.0, 9.0):
        assert window.wait("a") == 10 - now[0]
    now[0] = 10
    assert window.wait("a") == 0


def test_no_span_of_a_window_holds_more_than_its_limit():
    now = [0.0]
    window = Window(3, 100, lambda: now[0])
    passed = []
    for second in range(400):
        now[0] = float(second)
        if window.wait("a") == 0:
            passed.append(now[0])
    assert all(later - earlier >= 100 for earlier, later in zip(passed, passed[3:], strict=False))
    assert len(passed) == 12
