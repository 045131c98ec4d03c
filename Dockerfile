# syntax=docker/dockerfile:1
# expandr in a container; docs/container.md says how to run it and what of this has been tried.
#
#   docker build --target cpu -t expandr .           # a slim Debian with the one binary (the default target)
#   docker build --target cuda -t expandr:cuda .     # the same with CUDA, for --device cuda
#   docker build --target models -t expandr:models . # cpu and pip, which `expandr models pull` wants
ARG RUST=1.95
ARG DEBIAN=bookworm
ARG CUDA=13.0.1
ARG UBUNTU=24.04

# What both builds need beside Rust: a C and C++ compiler, make (jemalloc), CA certificates (the crates' registry).
FROM rust:${RUST}-slim-${DEBIAN} AS toolchain
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates pkg-config \
    && rm -rf /var/lib/apt/lists/*
ENV CARGO_INCREMENTAL=0
WORKDIR /src

# Manifests and lock alone. Its content, and so the cache of what copies it, changes only when they do.
FROM debian:${DEBIAN}-slim AS skeleton
COPY . /all
RUN sh /all/deploy/skeleton.sh /all /skeleton

# The dependencies take half an hour and more (mistralrs); this layer stays until a manifest changes.
FROM toolchain AS build-cpu
COPY --from=skeleton /skeleton .
RUN cargo build --release --locked --bin expandr
COPY . .
# COPY keeps the files' times, which may be older than the empty crates that were just built.
RUN find . -path ./target -prune -o -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --bin expandr \
    && install -D target/release/expandr /out/expandr

FROM debian:${DEBIAN}-slim AS cpu-base
# libstdc++ for usearch and tokenizers, certificates for remote language models, curl for the health check.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl libstdc++6 \
    && rm -rf /var/lib/apt/lists/*

# The compiler of the image that has CUDA's, and Rust beside it.
FROM nvidia/cuda:${CUDA}-devel-ubuntu${UBUNTU} AS build-cuda
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates pkg-config \
    && rm -rf /var/lib/apt/lists/*
COPY --from=toolchain /usr/local/rustup /usr/local/rustup
COPY --from=toolchain /usr/local/cargo /usr/local/cargo
# The oldest GPU that it shall run on, as nvidia-smi --query-gpu=compute_cap says it without the dot: 80 is an A100, 90 an H100.
ARG CUDA_COMPUTE_CAP=80
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:$PATH \
    CARGO_INCREMENTAL=0 CUDA_HOME=/usr/local/cuda CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP} \
    LIBRARY_PATH=/usr/local/cuda/lib64/stubs
WORKDIR /src
COPY --from=skeleton /skeleton .
RUN cargo build --release --locked --features cuda --bin expandr
COPY . .
RUN find . -path ./target -prune -o -name '*.rs' -exec touch {} + \
    && cargo build --release --locked --features cuda --bin expandr \
    && install -D target/release/expandr /out/expandr

# With cuBLAS and cuRAND, which the binary needs before it starts; the driver's libcuda comes from the host.
FROM nvidia/cuda:${CUDA}-runtime-ubuntu${UBUNTU} AS cuda-base
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl libstdc++6 \
    && rm -rf /var/lib/apt/lists/*

FROM cuda-base AS cuda
RUN groupadd --gid 10001 expandr && useradd --uid 10001 --gid expandr --create-home expandr \
    && install -d -o expandr -g expandr /data /models /collections
COPY --from=build-cuda /out/expandr /usr/local/bin/expandr
COPY training/recipes /usr/share/expandr/recipes
# Everything but loopback needs keys: EXPANDR_READ_KEYS, EXPANDR_WRITE_KEYS, EXPANDR_ADMIN_KEYS.
ENV EXPANDR_LISTEN=0.0.0.0:8080 EXPANDR_INDEX_DIR=/data/index EXPANDR_MODELS_DIR=/models \
    EXPANDR_DATA_DIR=/collections EXPANDR_RECIPES_DIR=/usr/share/expandr/recipes EXPANDR_LOG_FORMAT=json \
    HF_HOME=/models/hub EXPANDR_DEVICE=cuda
USER expandr
WORKDIR /data
VOLUME ["/data", "/models"]
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=5m --retries=3 \
    CMD curl -fsS -o /dev/null "http://127.0.0.1:${EXPANDR_LISTEN##*:}/readyz"
ENTRYPOINT ["expandr"]
CMD ["serve"]

# The same as cuda but for base, binary and device.
FROM cpu-base AS cpu-runtime
RUN groupadd --gid 10001 expandr && useradd --uid 10001 --gid expandr --create-home expandr \
    && install -d -o expandr -g expandr /data /models /collections
COPY --from=build-cpu /out/expandr /usr/local/bin/expandr
COPY training/recipes /usr/share/expandr/recipes
ENV EXPANDR_LISTEN=0.0.0.0:8080 EXPANDR_INDEX_DIR=/data/index EXPANDR_MODELS_DIR=/models \
    EXPANDR_DATA_DIR=/collections EXPANDR_RECIPES_DIR=/usr/share/expandr/recipes EXPANDR_LOG_FORMAT=json \
    HF_HOME=/models/hub EXPANDR_DEVICE=cpu
USER expandr
WORKDIR /data
VOLUME ["/data", "/models"]
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=2m --retries=3 \
    CMD curl -fsS -o /dev/null "http://127.0.0.1:${EXPANDR_LISTEN##*:}/readyz"
ENTRYPOINT ["expandr"]
CMD ["serve"]

# Fills a volume with the default weights and ends. Only this image has Python.
FROM cpu-runtime AS models
USER root
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
USER expandr
HEALTHCHECK NONE
CMD ["models", "pull"]

FROM cpu-runtime AS cpu
