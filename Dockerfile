# docker build .                  the consumer
# docker build --target demo .    the demo's programs, among them its producer
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY deploy/requirements.txt deploy/requirements-build.txt deploy/
RUN pip install --require-hashes --only-binary :all: --requirement deploy/requirements-build.txt \
    && python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install \
        --require-hashes --only-binary :all: --requirement deploy/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY consumer consumer
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /venv/bin/python install --no-deps dist/*.whl \
    && pip --python /venv/bin/python check

FROM build AS build-demo
COPY deploy/requirements-demo.txt deploy/
RUN pip --python /venv/bin/python install \
        --require-hashes --only-binary :all: --requirement deploy/requirements-demo.txt \
    && pip --python /venv/bin/python check

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="zarr-tile-consumer" \
      org.opencontainers.image.description="Consumes predicted image tiles from RabbitMQ and stitches them into Zarr." \
      org.opencontainers.image.licenses="BSD-3-Clause"
# TMPDIR: with a read-only root file system there is no other place for temporary files.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TILES_OUTPUT_ROOT=/output \
    TILES_SCRATCH_FOLDER=/scratch \
    TMPDIR=/scratch
# An empty named volume takes over the owner of the folder that it is mounted on.
RUN install --directory --owner=65532 --group=65532 /output /scratch
WORKDIR /
USER 65532:65532
STOPSIGNAL SIGTERM

FROM runtime AS demo
COPY --from=build-demo /venv /venv
# matplotlib keeps a list of fonts.
ENV MPLCONFIGDIR=/scratch
ENTRYPOINT ["python", "-m"]
CMD ["consumer.demo.producer", "--help"]

FROM runtime AS service
COPY --from=build /venv /venv
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ.get(\"TILES_HTTP_PORT\", 8080)}/livez', timeout=5)"]
ENTRYPOINT ["consumer"]
CMD ["run"]
