# Two images: `serve`, the last one, answers calls; `train` trains, measures and quantizes.
#
#     docker build --tag tuneserve .
#     docker build --tag tuneserve-train --target train .
#
# They are for CPUs, or with --build-arg EXTRA=gpu for NVIDIA GPUs. BASE is Debian 12, for its Python 3.11; its packages
# are not pinned: Debian keeps only the latest version of each.
ARG BASE=debian:bookworm-slim
ARG EXTRA=cpu

FROM ${BASE} AS python
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    && useradd --no-log-init --uid 10001 --home-dir /tmp --no-create-home tuneserve

FROM python AS uv
ARG UV_VERSION=0.13.9
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir "uv==$UV_VERSION"
ENV PATH=/opt/uv/bin:$PATH VIRTUAL_ENV=/opt/tuneserve UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /src

FROM uv AS packages-serve
ARG EXTRA
ARG UV_FIND_LINKS
COPY requirements/serve-${EXTRA}.txt .
# The CPU build of PyTorch is in an index of its own, or in a folder of wheels.
RUN --mount=type=cache,target=/root/.cache/uv \
    if [ "$EXTRA" = cpu ] && [ -z "$UV_FIND_LINKS" ]; then set -- --torch-backend=cpu; fi \
    && uv venv "$VIRTUAL_ENV" \
    && uv pip install --no-deps --requirement "serve-$EXTRA.txt" "$@"

FROM packages-serve AS packages-train
ARG EXTRA
ARG UV_FIND_LINKS
COPY requirements/train-${EXTRA}.txt .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --requirement "train-$EXTRA.txt"

FROM packages-serve AS ours
COPY . .
RUN uv pip install --no-deps --no-build-isolation --prefix /ours .

FROM python AS runtime
ARG EXTRA
# On GPUs there is a compiler: Triton compiles what starts its kernels.
# hadolint ignore=DL3008
RUN case "$EXTRA" in \
        cpu) set -- libnuma1 libtcmalloc-minimal4 ;; \
        gpu) set -- gcc libc6-dev libpython3-dev ;; \
    esac \
    && apt-get update \
    && apt-get install --yes --no-install-recommends "$@" \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
LABEL org.opencontainers.image.title="tuneserve" \
      org.opencontainers.image.description="Fine-tune, quantize and serve models over gRPC on vLLM's continuous batching" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/tuneserve/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["tuneserve"]

# The packages come first: they are a layer that stays the same when only our code changes.
FROM runtime AS train
COPY --from=packages-train /opt/tuneserve /opt/tuneserve
COPY --from=ours /ours /opt/tuneserve
USER 10001:10001

FROM runtime AS serve
COPY --from=packages-serve /opt/tuneserve /opt/tuneserve
COPY --from=ours /ours /opt/tuneserve
USER 10001:10001
EXPOSE 8033 9033
# For Docker; Kubernetes has probes of its own. It asks port 8034 (`health_listen`, without TLS), and without one, 8033.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30m CMD ["python", "-c", "\
import grpc, sys; \
from grpc_health.v1 import health_pb2 as pb, health_pb2_grpc; \
health = health_pb2_grpc.HealthStub(grpc.insecure_channel('ipv4:127.0.0.1:8034,127.0.0.1:8033')); \
sys.exit(health.Check(pb.HealthCheckRequest(), timeout=5).status != pb.HealthCheckResponse.SERVING)"]
