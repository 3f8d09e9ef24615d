from __future__ import annotations

import pytest

from feature_store.expressions.instants import DAY, HOUR, MINUTE, default_hop


@pytest.mark.parametrize(
    ("window", "hop"),
    [
        (1, 5 * MINUTE),
        (12 * HOUR - 1, 5 * MINUTE),
        (12 * HOUR, HOUR),
        (12 * DAY - 1, HOUR),
        (12 * DAY, DAY),
        (365 * DAY, DAY),
    ],
)
def test_the_hop_of_a_window_that_names_none(window: int, hop: int) -> None:
    assert default_hop(window) == hop
