"""Answers as Python values."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from feature_store.expressions.visibility import Status
from feature_store.retrieval.response import OnlineResponse
from feature_store.types import DATE, TIMESTAMP, Type, array
from feature_store.values import EARLIEST, LATEST


@pytest.mark.parametrize(
    ("type_", "raw", "shown"),
    [
        (DATE, [0, None, -719_162, 2_932_896], [date(1970, 1, 1), None, date.min, date.max]),
        (DATE, [-719_163, 2_932_897, 2**31 - 1], [-719_163, 2_932_897, 2**31 - 1]),
        (array(DATE), [[-(2**31), 1], None], [[-(2**31), date(1970, 1, 2)], None]),
        (TIMESTAMP, [EARLIEST, LATEST + 1, None], [datetime(1, 1, 1, tzinfo=UTC), LATEST + 1, None]),
    ],
)
def test_times_out_of_pythons_years_stay_numbers(type_: Type, raw: list[object], shown: list[object]) -> None:
    response = OnlineResponse(("x",), (type_,), [(raw, Status.PRESENT, None)], len(raw))
    assert response.to_dict() == {"x": shown}


def test_an_answer_says_in_short_what_it_holds() -> None:
    response = OnlineResponse(("user_id", "age"), (None, None), [([1, 2], Status.PRESENT, None)] * 2, 2)
    assert repr(response) == "<OnlineResponse: 2 rows of user_id, age>"
