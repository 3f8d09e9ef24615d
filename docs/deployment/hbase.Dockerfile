# HBase with its Thrift gateway, of the jars that the tests run. Master, region server and ZooKeeper are one process:
# for development and trials; in production, name the gateways of your cluster instead.
FROM maven:3.9-eclipse-temurin-17 AS jars
COPY tests/maven/hbase/pom.xml /build/pom.xml
RUN mvn -q -B -f /build/pom.xml org.apache.maven.plugins:maven-dependency-plugin:2.8:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory=/build/lib

FROM eclipse-temurin:17-jre
COPY --from=jars /build/lib /opt/hbase/lib
COPY docs/deployment/hbase /opt/hbase/conf
RUN useradd --create-home --uid 10002 hbase && mkdir /data && chown hbase /data
USER hbase
VOLUME /data
