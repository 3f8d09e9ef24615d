"""The ads repository from generated files to values, recomputed with pandas, late and repeated rows included."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from feature_store import FeatureStore
from feature_store.expressions.instants import DAY, HOUR, MINUTE, instant
from feature_store.templates import create

END = instant("2026-06-15T18:00:00Z")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    repo = create(tmp_path_factory.mktemp("flow") / "ads", "ads", events=6_000, end=END)
    store = FeatureStore(repo)
    store.apply()
    store.materialize_incremental(pd.Timestamp(END, unit="us", tz="UTC").to_pydatetime())
    yield store
    store.close()


def events(store: FeatureStore, name: str) -> pd.DataFrame:
    """The events of a table, each once."""
    rows = pd.read_parquet(store.root / "data" / name).drop_duplicates("impression_id")
    return rows.assign(at=rows["event_time"].astype("int64"))


@pytest.fixture(scope="module")
def impressions(store: FeatureStore) -> pd.DataFrame:
    return pd.read_parquet(store.root / "data/impressions_labelled.parquet").tail(400).reset_index(drop=True)


@pytest.fixture(scope="module")
def found(store: FeatureStore, impressions: pd.DataFrame) -> pd.DataFrame:
    features = ["ctr_v1", ["user_click_cnt_7d"]]
    parts = [store.get_historical_features(impressions, each, full_feature_names=True).to_df() for each in features]
    assert all(len(part) == len(impressions) for part in parts)
    found = parts[0].assign(sql=parts[1]["user_click_cnt_7d__user_click_cnt_7d"])
    for name in ("user_clicks__user_click_cnt_7d", "user_conversions__user_conv_cnt_30d", "ad_history__ad_ctr_history"):
        assert (found[name] > 0).sum() > 20, f"{name}: too little data to compare"
    return found


def moments(impressions: pd.DataFrame) -> np.ndarray:
    at: np.ndarray = impressions["event_timestamp"].astype("int64").to_numpy()
    return at


def inside(rows: pd.DataFrame, keys: dict[str, Any], low: int, high: int) -> pd.DataFrame:
    """The rows of a key with low <= event time < high."""
    chosen = (rows["at"] >= low) & (rows["at"] < high)
    for name, value in keys.items():
        chosen &= rows[name] == value
    return rows[chosen]


def test_windows_move(store: FeatureStore, impressions: pd.DataFrame, found: pd.DataFrame) -> None:
    clicks = events(store, "dwd_ad_click")
    for row, at, user, ad in zip(
        found.to_dict("records"), moments(impressions), impressions["user_id"], impressions["ad_id"], strict=True
    ):
        week = inside(clicks, {"user_id": user}, (at - 7 * DAY) // HOUR * HOUR, at)
        hour = inside(clicks, {"user_id": user}, (at - HOUR) // (5 * MINUTE) * 5 * MINUTE, at)
        both = inside(clicks, {"user_id": user, "ad_id": ad}, (at - 30 * DAY) // DAY * DAY, at)
        assert row["user_clicks__user_click_cnt_7d"] == len(week)
        assert row["user_clicks__user_click_cnt_1h"] == len(hour)
        assert row["user_ad_clicks__user_ad_click_cnt_30d"] == len(both)
        paid = week.loc[week["price"] > 0, "price"]
        assert row["user_clicks__user_spend_7d"] == pytest.approx(paid.sum(), rel=1e-12, abs=0)


def test_snapshots_are_those_of_the_last_midnight(
    store: FeatureStore, impressions: pd.DataFrame, found: pd.DataFrame
) -> None:
    conversions = events(store, "dwd_ad_conversion")
    for row, at, user in zip(found.to_dict("records"), moments(impressions), impressions["user_id"], strict=True):
        midnight = at // DAY * DAY
        month = inside(conversions, {"user_id": user}, (midnight - 30 * DAY) // DAY * DAY, midnight)
        assert row["user_conversions__user_conv_cnt_30d"] == len(month)
        assert row["user_conversions__user_conv_amount_30d"] == pytest.approx(month["amount"].sum(), rel=1e-12, abs=0)


def test_daily_queries_are_those_of_yesterday(
    store: FeatureStore, impressions: pd.DataFrame, found: pd.DataFrame
) -> None:
    shown, clicks = events(store, "dwd_ad_impression"), events(store, "dwd_ad_click")
    clicked = set(clicks["impression_id"])
    for row, at, user, ad in zip(
        found.to_dict("records"), moments(impressions), impressions["user_id"], impressions["ad_id"], strict=True
    ):
        today = at // DAY * DAY
        of_user = inside(clicks, {"user_id": user}, today - 8 * DAY, END + DAY)
        assert row["sql"] == len(of_user) if len(of_user) else np.isnan(row["sql"])
        of_ad = inside(shown, {"ad_id": ad}, today - 30 * DAY, today)
        until = set(clicks.loc[clicks["at"] < today, "impression_id"]) & clicked
        ratio = of_ad["impression_id"].isin(until).mean() if len(of_ad) else 0.0
        assert row["ad_history__ad_ctr_history"] == pytest.approx(ratio, rel=1e-12, abs=0)


def test_profiles_are_those_of_the_latest_row(
    impressions: pd.DataFrame, found: pd.DataFrame, store: FeatureStore
) -> None:
    users = pd.read_parquet(store.root / "data/dim_user").sort_values(["updated_at", "ingested_at"])
    users = users.rename(columns={"updated_at": "event_timestamp"})
    spine = impressions[["user_id", "event_timestamp"]].assign(row=range(len(impressions)))
    merged = pd.merge_asof(spine.sort_values("event_timestamp"), users, on="event_timestamp", by="user_id")
    merged = merged.sort_values("row")
    assert found["user_profile__user_age"].tolist() == merged["age"].tolist()
    pd.testing.assert_series_equal(
        found["user_profile__user_gender"], merged["gender"].reset_index(drop=True), check_names=False
    )
    hours = impressions["request_time"].dt.hour
    assert found["context__context_hour"].tolist() == hours.tolist()


def test_online_answers_what_history_says(store: FeatureStore, impressions: pd.DataFrame) -> None:
    moment = pd.Timestamp(END, unit="us", tz="UTC")
    rows = impressions[["user_id", "ad_id", "os", "request_time"]].head(100).to_dict("records")
    rows.append({"user_id": 10**9, "ad_id": 10**9, "os": "ios", "request_time": moment})
    history = store.get_historical_features(
        pd.DataFrame(rows).assign(event_timestamp=moment), features="ctr_v1"
    ).to_arrow()
    online = store.online.get("ctr_v1", rows, now=END).to_arrow()
    for name in set(online.column_names) - {"user_id", "ad_id"}:
        for number, (found, wanted) in enumerate(zip(online[name].to_pylist(), history[name].to_pylist(), strict=True)):
            close = pytest.approx(wanted, rel=1e-12, abs=0) if isinstance(wanted, float) else wanted
            assert found == close, (name, rows[number])
