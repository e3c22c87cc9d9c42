# The package becomes a wheel in a stage of its own, so that the tools which build it
# (at their locked versions) are not part of what runs.
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY requirements-dev.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements-dev.lock
COPY pyproject.toml README.md LICENSE ./
COPY durable_actor ./durable_actor
COPY workflows ./workflows
RUN python -m hatchling build --target wheel --directory /dist


FROM python:3.11-slim
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

COPY requirements.lock /tmp/
COPY --from=wheel /dist /tmp/dist
RUN pip install --no-cache-dir --require-hashes -r /tmp/requirements.lock \
    && pip install --no-cache-dir --no-deps --no-index /tmp/dist/*.whl \
    && rm -r /tmp/dist /tmp/requirements.lock

# A fixed number, so that the owner of a volume survives a new image. The folder is made
# before the user is switched: a new volume takes its owner and mode from it.
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin durable \
    && install --directory --owner=durable --group=durable --mode=0700 /data
COPY config.toml /app/
COPY examples /app/examples
WORKDIR /app
USER 10001:10001

VOLUME /data
EXPOSE 8787

# Inside a container the daemon must listen on every interface, which it refuses unless
# told. Who can reach it is decided where the port is published: on loopback only, in
# docker-compose.yml. Set a token before publishing it wider.
ENV DURABLE_ACTOR_HTTP_ALLOW_PUBLIC=true

# The daemon drains on TERM and then exits with status 0.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8787/readyz', timeout=2)"]
ENTRYPOINT ["durable-actor"]
CMD ["serve", "--config", "/app/config.toml", "--data-dir", "/data", "--listen", "0.0.0.0:8787"]
