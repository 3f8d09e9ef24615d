"""Real servers for tests: started on free ports in folders of their own, stopped at the end."""

from __future__ import annotations

from tests.servers.flink import FlinkCluster
from tests.servers.hbase import HBaseServer
from tests.servers.hdfs import HdfsServer
from tests.servers.kafka import KafkaServer, SecureKafka
from tests.servers.postgres import PostgresServer
from tests.servers.processes import free_port
from tests.servers.redis import RedisCluster, RedisServer
from tests.servers.s3 import S3Server
from tests.servers.schemas import SchemaServer
from tests.servers.spark import SparkCluster

__all__ = [
    "FlinkCluster",
    "HBaseServer",
    "HdfsServer",
    "KafkaServer",
    "PostgresServer",
    "RedisCluster",
    "RedisServer",
    "S3Server",
    "SchemaServer",
    "SecureKafka",
    "SparkCluster",
    "free_port",
]
