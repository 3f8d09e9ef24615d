"""Features over the real impressions of the Open Bandit Dataset.

OPEN_BANDIT is the folder of the CSV files, OPEN_BANDIT_LOG which of its logs is read: {random,bts}_{men,women}.
There is no user id: the four user features together are the key of a user group.
"""

import os
from pathlib import Path

from feature_store import Aggregation, Entity, FeatureService, FeatureView, Field, OnDemandFeatureView, Source

folder = Path(os.environ.get("OPEN_BANDIT", "data/open_bandit"))
log = os.environ.get("OPEN_BANDIT_LOG", "random_men")

item = Entity(name="item", join_key="item_id", type="INT64")
user_feature_0 = Entity(name="user_feature_0", type="STRING")
user_feature_1 = Entity(name="user_feature_1", type="STRING")
user_feature_2 = Entity(name="user_feature_2", type="STRING")
user_feature_3 = Entity(name="user_feature_3", type="STRING")
group = [user_feature_0, user_feature_1, user_feature_2, user_feature_3]

# The first column of the files has no name: `columns` says which are read, and as what.
impressions = Source(
    name="impressions",
    path=str(folder / f"{log}.csv"),
    timestamp="timestamp",
    columns=[
        {"name": "timestamp", "type": "TIMESTAMP"},
        {"name": "item_id", "type": "INT64"},
        {"name": "position", "type": "INT64"},
        {"name": "click", "type": "INT64"},
        {"name": "propensity_score", "type": "FLOAT64"},
        *({"name": entity.join_key, "type": "STRING"} for entity in group),
    ],
    stream={"push": True},
)

items = Source(
    name="items",
    path=str(folder / f"{log}_items.csv"),
    columns=[
        {"name": "item_id", "type": "INT64"},
        {"name": "item_feature_0", "type": "FLOAT64"},
        {"name": "item_feature_1", "type": "STRING"},
        {"name": "item_feature_2", "type": "STRING"},
        {"name": "item_feature_3", "type": "STRING"},
    ],
)

# The items have no time: a daily query takes them as they are.
item_profile = FeatureView(
    name="item_profile",
    entities=[item],
    sql="SELECT item_id, item_feature_0, item_feature_1, item_feature_2, item_feature_3 FROM items",
    features=[
        Field(name="item_feature_0", type="FLOAT64"),
        Field(name="item_feature_1", type="STRING"),
        Field(name="item_feature_2", type="STRING"),
        Field(name="item_feature_3", type="STRING"),
    ],
    schedule="daily",
)

item_stats = FeatureView(
    name="item_stats",
    entities=[item],
    source=impressions,
    aggregations=[
        Aggregation(name="item_imp_cnt_1h", function="count", window="1h"),
        Aggregation(name="item_imp_cnt_1d", function="count", window="1d"),
        Aggregation(name="item_click_cnt_1d", function="count", window="1d", where="click = 1"),
        Aggregation(name="item_propensity_1d", function="mean", column="propensity_score", window="1d"),
        Aggregation(name="item_last_positions", function="last_n(3)", column="position", window="1d"),
        # Longer than the log: everything so far.
        Aggregation(name="item_imp_cnt", function="count", window="20000d"),
        Aggregation(name="item_ctr", function="mean", column="click", window="20000d"),
    ],
)

group_stats = FeatureView(
    name="group_stats",
    entities=group,
    source=impressions,
    aggregations=[
        Aggregation(name="group_imp_cnt_3d", function="count", window="3d"),
        Aggregation(name="group_items_3d", function="count_distinct", column="item_id", window="3d"),
        Aggregation(name="group_imp_cnt", function="count", window="20000d"),
        Aggregation(name="group_click_cnt", function="sum", column="click", window="20000d", default=0),
    ],
)

# A query per day: its rows are valid from the next midnight on, until the next ones are.
item_yesterday = FeatureView(
    name="item_yesterday",
    entities=[item],
    sql="""
        SELECT item_id, COUNT(*) AS item_imp_cnt_yesterday, AVG(position) AS item_position_yesterday
        FROM impressions
        WHERE CAST(`timestamp` AS DATE) = CAST('${date}' AS DATE)
        GROUP BY item_id
    """,
    features=[
        Field(name="item_imp_cnt_yesterday", type="INT64"),
        Field(name="item_position_yesterday", type="FLOAT64"),
    ],
    schedule="daily",
)

context = OnDemandFeatureView(
    name="context",
    inputs=[Field(name="position", type="INT64"), "group_stats:group_imp_cnt", "group_stats:group_click_cnt"],
    features=[
        Field(name="is_first", type="BOOL", expression="position = 1"),
        Field(name="group_ctr", type="FLOAT64", expression="(group_click_cnt + 1) / (group_imp_cnt + 200)"),
    ],
)

bandit_v1 = FeatureService(name="bandit_v1", features=[item_profile, item_stats, item_yesterday, group_stats, context])
