"""The second example, over real impressions: every feature of every impression, recomputed with pandas and numpy."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from feature_store import FeatureStore

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("OPEN_BANDIT", ROOT.parent / "shared/data/open_bandit"))
LOGS = ("random_men", "random_women", "bts_men", "bts_women")
GROUP = ["user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3"]
ITEM = ["item_feature_0", "item_feature_1", "item_feature_2", "item_feature_3"]
SECOND = 1_000_000
HOUR, DAY = 3600 * SECOND, 86400 * SECOND
START, END = pd.Timestamp("2019-11-23", tz="UTC"), pd.Timestamp("2019-12-01", tz="UTC")


@pytest.fixture(scope="module", params=LOGS)
def log(request: pytest.FixtureRequest) -> str:
    if not (DATA / f"{request.param}.csv").is_file():
        pytest.fail(f"{DATA} does not hold {request.param}.csv: set OPEN_BANDIT to the folder of the Open Bandit data")
    return str(request.param)


@pytest.fixture(scope="module")
def store(log: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    repo = tmp_path_factory.mktemp(log) / "repo"
    shutil.copytree(ROOT / "docs/examples/open_bandit", repo, ignore=shutil.ignore_patterns("data", "__pycache__"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPEN_BANDIT", str(DATA))
        patch.setenv("OPEN_BANDIT_LOG", log)
        patch.delenv("ONLINE_STORE", raising=False)
        store = FeatureStore(repo)
        store.apply()
        store.materialize(START.to_pydatetime(), END.to_pydatetime())
        yield store


@pytest.fixture(scope="module")
def impressions(log: str) -> pd.DataFrame:
    rows = pd.read_csv(DATA / f"{log}.csv", index_col=0, usecols=[*range(10)])
    rows["timestamp"] = pd.to_datetime(rows["timestamp"], format="ISO8601", utc=True).astype("datetime64[us, UTC]")
    return rows


@pytest.fixture(scope="module")
def items(log: str) -> pd.DataFrame:
    return pd.read_csv(DATA / f"{log}_items.csv", index_col=0).set_index("item_id")


def spine(impressions: pd.DataFrame) -> pd.DataFrame:
    rows = impressions[["timestamp", "item_id", "position", "click", *GROUP]]
    return rows.rename(columns={"timestamp": "event_timestamp"})


class Events:
    """The events of one key, in order of time, to look through one window after another."""

    def __init__(self, rows: pd.DataFrame) -> None:
        rows = rows.sort_values("timestamp", kind="stable")
        self.times = rows["timestamp"].astype("int64").to_numpy()
        self.columns = {name: rows[name].to_numpy() for name in ("item_id", "position", "click", "propensity_score")}

    def window(self, at: int, length: int, hop: int) -> dict[str, np.ndarray]:
        """floor(at - length, hop) <= event time < at."""
        low = int(np.searchsorted(self.times, (at - length) // hop * hop, side="left"))
        high = int(np.searchsorted(self.times, at, side="left"))
        return {name: column[low:high] for name, column in self.columns.items()}


NOTHING = Events(
    pd.DataFrame(
        {"timestamp": pd.to_datetime([], utc=True), "item_id": [], "position": [], "click": [], "propensity_score": []}
    )
)


def expected_item(events: Events, at: int) -> dict[str, Any]:
    hour, day = events.window(at, HOUR, 300 * SECOND), events.window(at, DAY, HOUR)
    ever = events.window(at, 20000 * DAY, DAY)
    shown = len(day["click"])
    return {
        "item_imp_cnt_1h": len(hour["click"]),
        "item_imp_cnt_1d": shown,
        "item_click_cnt_1d": int((day["click"] == 1).sum()),
        "item_propensity_1d": float(day["propensity_score"].mean()) if shown else None,
        "item_last_positions": day["position"].tolist()[-3:] if shown else None,
        "item_imp_cnt": len(ever["click"]),
        "item_ctr": float(ever["click"].mean()) if len(ever["click"]) else None,
    }


def expected_group(events: Events, at: int) -> dict[str, Any]:
    recent, ever = events.window(at, 3 * DAY, HOUR), events.window(at, 20000 * DAY, DAY)
    shown, clicks = len(ever["click"]), int(ever["click"].sum())
    return {
        "group_imp_cnt_3d": len(recent["click"]),
        "group_items_3d": len(np.unique(recent["item_id"])),
        "group_imp_cnt": shown,
        "group_click_cnt": clicks,
        "group_ctr": (clicks + 1) / (shown + 200),
    }


def same(found: Any, wanted: Any) -> bool:
    """Lists and integers exactly, nulls as nulls, doubles within 1e-12."""
    if isinstance(wanted, list):
        return found is not None and list(found) == wanted
    if wanted is None or wanted != wanted:
        return found is None or found != found
    if isinstance(wanted, float):
        return found is not None and abs(found - wanted) <= 1e-12 * max(1.0, abs(wanted))
    return bool(found == wanted)


def test_every_impression_has_the_features_it_had_then(
    store: FeatureStore, impressions: pd.DataFrame, items: pd.DataFrame
) -> None:
    given = spine(impressions)
    found = store.get_historical_features(given, features="bandit_v1").to_df()
    assert len(found) == len(given) == 10_000
    for name in given.columns:
        assert (found[name].to_numpy() == given[name].to_numpy()).all(), name
    by_item = {key: Events(rows) for key, rows in impressions.groupby("item_id")}
    by_group = {key: Events(rows) for key, rows in impressions.groupby(GROUP)}
    daily = impressions.groupby([impressions["timestamp"].dt.date, "item_id"])["position"].agg(["size", "mean"])
    of_days = {key: (int(row["size"]), float(row["mean"])) for key, row in daily.iterrows()}
    profiles = items[ITEM].to_dict("index")
    for row in found.to_dict("records"):
        at = row["event_timestamp"].value // 1000
        yesterday = (row["event_timestamp"] - pd.Timedelta(days=1)).date()
        size, mean = of_days.get((yesterday, row["item_id"]), (None, None))
        wanted = {
            **profiles[row["item_id"]],
            **expected_item(by_item[row["item_id"]], at),
            **expected_group(by_group[tuple(row[name] for name in GROUP)], at),
            "item_imp_cnt_yesterday": size,
            "item_position_yesterday": mean,
            "is_first": row["position"] == 1,
        }
        for name, value in wanted.items():
            assert same(row[name], value), (name, row[name], value, row["event_timestamp"])


def test_online_answers_what_history_says(store: FeatureStore, impressions: pd.DataFrame, items: pd.DataFrame) -> None:
    """At the end of the log, and now, when a daily run has brought the snapshots up to date."""
    groups = impressions[GROUP].drop_duplicates().head(200).to_dict("records")
    rows = [
        {**group, "item_id": int(items.index[number % len(items)]), "position": number % 3 + 1}
        for number, group in enumerate(groups)
    ]
    rows.append({**dict.fromkeys(GROUP, "nobody"), "item_id": 10_000, "position": 1})
    at_end = online_as_in_history(store, impressions, rows, END)
    assert at_end["item_imp_cnt_1d"][0] > 0
    assert at_end["item_imp_cnt_yesterday"][0] > 0
    now = pd.Timestamp.now(tz="UTC")
    store.materialize((now - pd.Timedelta(days=1)).to_pydatetime(), now.to_pydatetime())
    later = online_as_in_history(store, impressions, rows, now)
    assert later["item_imp_cnt_1d"][0] == 0
    assert later["item_imp_cnt_yesterday"][0] is None
    for online in (at_end, later):
        assert online["item_imp_cnt"][0] > 0
        assert online["item_feature_0"][0] is not None
        assert online["item_imp_cnt"][-1] == 0
        assert online["item_feature_0"][-1] is None
        assert online["group_click_cnt"][-1] == 0


def online_as_in_history(
    store: FeatureStore, impressions: pd.DataFrame, rows: list[dict[str, Any]], moment: pd.Timestamp
) -> dict[str, list[Any]]:
    """The online answer, after comparing it with history and with the oracle."""
    at = moment.value // 1000
    online: dict[str, list[Any]] = store.online.get("bandit_v1", rows, now=at).to_dict()
    spine = pd.DataFrame(rows).assign(event_timestamp=moment)
    history = store.get_historical_features(spine, features="bandit_v1").to_arrow().to_pydict()
    assert set(history) - {"event_timestamp"} == set(online)
    for name, values in online.items():
        for row, found, wanted in zip(rows, values, history[name], strict=True):
            assert same(found, wanted), (name, row, found, wanted)
    by_item = {key: Events(part) for key, part in impressions.groupby("item_id")}
    for number, row in enumerate(rows):
        for name, value in expected_item(by_item.get(row["item_id"], NOTHING), at).items():
            assert same(online[name][number], value), (name, row)
    return online
