# Both programs in one image; what it runs is the command: `storage-proxy …` or `manager-api …`.
#
# FoundationDB's client library and package have to be of the cluster's minor version: change both together.
ARG PYTHON=3.13
ARG FOUNDATIONDB=7.1.67

FROM foundationdb/foundationdb:${FOUNDATIONDB} AS foundationdb

FROM python:${PYTHON}-slim AS build
ARG FOUNDATIONDB
WORKDIR /src
RUN python -m venv /opt/storage-proxy
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY storage_proxy storage_proxy
COPY manager_api manager_api
RUN /opt/storage-proxy/bin/pip install --no-cache-dir . "foundationdb==${FOUNDATIONDB}"

FROM python:${PYTHON}-slim
COPY --from=foundationdb /usr/lib/libfdb_c.so /usr/lib/libfdb_c.so
COPY --from=build /opt/storage-proxy /opt/storage-proxy
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/storage-proxy storage-proxy
ENV PATH=/opt/storage-proxy/bin:$PATH PYTHONUNBUFFERED=1
USER storage-proxy
WORKDIR /var/lib/storage-proxy
EXPOSE 6020 6021 6022 6023
STOPSIGNAL SIGTERM
CMD ["storage-proxy", "--help"]
