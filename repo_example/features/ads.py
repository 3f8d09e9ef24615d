"""The ads, in Python: the same objects as in YAML."""

from feature_store import Aggregation, Entity, FeatureView, Field, Source

ad = Entity(name="ad", join_key="ad_id", type="INT64", description="an ad that is shown")

dim_ad = Source(name="dim_ad", path="data/dim_ad", timestamp="updated_at", created="ingested_at")

ad_profile = FeatureView(
    name="ad_profile",
    entities=[ad],
    source=dim_ad,
    features=[
        Field(name="ad_industry", type="STRING", column="industry"),
        Field(name="ad_advertiser", type="INT64", column="advertiser_id"),
        Field(name="ad_bid", type="FLOAT64", column="bid"),
    ],
    tags=["ad", "profile"],
)

# A query with a join, run once a day. `${date}` is that day; its rows are valid from the next midnight on.
ad_history = FeatureView(
    name="ad_history",
    entities=[ad],
    sql="""
        SELECT i.ad_id,
               COUNT(DISTINCT i.impression_id) AS ad_imp_cnt_30d,
               COUNT(DISTINCT c.impression_id) / COUNT(DISTINCT i.impression_id) AS ad_ctr_history
        FROM dwd_ad_impression i
        LEFT JOIN dwd_ad_click c ON i.impression_id = c.impression_id AND c.dt <= '${date}'
        WHERE i.dt > date_sub('${date}', 30) AND i.dt <= '${date}'
        GROUP BY i.ad_id
    """,
    features=[
        Field(name="ad_imp_cnt_30d", type="INT64"),
        Field(name="ad_ctr_history", type="FLOAT64", description="clicks per impression, 30 days", default=0.0),
    ],
    schedule="daily",
    tags=["ad", "behavior"],
)

# Two entities make one key.
user_ad_clicks = FeatureView(
    name="user_ad_clicks",
    entities=["user", ad],
    source="dwd_ad_click",
    aggregations=[Aggregation(name="user_ad_click_cnt_30d", function="count", window="30d")],
    tags=["user", "ad", "behavior", "click"],
)
