# Three images from one file. `docker build --target cpu .` calibrates, exports, proves and runs on a CPU; `--target
# release` only proves and runs, from packages and a base that are known by their digests; `--target gpu` adds CUDA,
# ONNX Runtime for CUDA and TensorRT, and builds and runs engines. All run as UID 10001, need one writable directory
# (/data) and work with a read-only root. No model of yours and no engine is inside; what the Python package ships comes
# along: its recipes and its two small demo models (6 MB), which `quickstart` uses.
#
#   docker build --target cpu -t gacq-deploy:cpu .
#   docker run --rm --read-only -v gacq-data:/data gacq-deploy:cpu quickstart
#
# Build arguments:
#   PYTHON_IMAGE      base of `cpu` and `release`; `release` takes it as NAME@sha256:DIGEST only
#   CUDA_IMAGE        base of `gpu`
#   EXTRAS            of `cpu`: cpu,calibrate,sign (default, 1.5 GB), or cpu,sign (0.5 GB, without PyTorch): `run`,
#                     `parity`, `bench` and `verify` need no more. `release` has those: docker/serving.txt
#   GPU_EXTRAS        gpu,trt (default); gpu,trt,calibrate to calibrate on the GPU as well
#   TENSORRT_VERSION  the one version that the gpu image builds and runs engines with: a plan belongs to its version
#   PIP_FLAGS         for pip install, e.g. --find-links DIR; a pip configuration can be passed as the secret `pip`,
#                     which no layer keeps. pip's default torch brings several GB of CUDA: on the cpu target point pip
#                     at a CPU build
#
# docker/build-without-docker.sh builds and tries the targets cpu and release with buildah; its result is in
# benchmarks/results/container.jsonl. The gpu target is linted, but has not been built with NVIDIA's base image and
# libraries: its steps were only run on a Debian base with an empty package in the place of TensorRT.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.3.0-cudnn-runtime-ubuntu24.04
ARG TENSORRT_VERSION=11.4.0.106

# --- the wheel, and pip kept out of what is shipped ---
FROM ${PYTHON_IMAGE} AS wheel
ARG PIP_FLAGS=
WORKDIR /source
COPY docker/build.txt docker/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /tools \
    && /tools/bin/pip install --no-cache-dir --require-hashes --only-binary :all: ${PIP_FLAGS} \
        --requirement docker/build.txt
COPY . .
RUN /tools/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /wheel .

# --- what the images on a CPU share, but for their packages ---
FROM ${PYTHON_IMAGE} AS cpu-base
LABEL org.opencontainers.image.title="gacq-deploy" \
      org.opencontainers.image.description="From a diffusion denoiser to a verified INT8 engine, on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 gacq \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin gacq \
    && install --directory --owner 10001 --group 10001 /data
ENV PATH=/opt/gacq-deploy/bin:$PATH \
    HOME=/data \
    TMPDIR=/data \
    HF_HUB_DISABLE_TELEMETRY=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1

# --- cpu ---
FROM wheel AS cpu-environment
ARG EXTRAS=cpu,calibrate,sign
ARG PIP_FLAGS=
RUN python3 -m venv --without-pip /opt/gacq-deploy
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    set -- /wheel/*.whl \
    && /tools/bin/pip --python /opt/gacq-deploy/bin/python install --no-cache-dir --constraint constraints.txt \
        ${PIP_FLAGS} "$1[${EXTRAS}]"

FROM cpu-base AS cpu
COPY --from=cpu-environment /opt/gacq-deploy /opt/gacq-deploy
USER 10001:10001
WORKDIR /data
VOLUME /data
ENTRYPOINT ["gacq-deploy"]
CMD ["--help"]

# --- release: what serves, on a base known by its digest, from wheels known by their hashes ---
FROM wheel AS release-environment
ARG PYTHON_IMAGE
ARG PIP_FLAGS=
RUN expr "${PYTHON_IMAGE}" : '.*@sha256:[0-9a-f]\{64\}$' >/dev/null \
    || { echo "error: a release is built on a base known by its digest, PYTHON_IMAGE is '${PYTHON_IMAGE}':" \
        "pass --build-arg PYTHON_IMAGE=NAME@sha256:DIGEST" >&2; exit 1; }
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv --without-pip /opt/gacq-deploy \
    && /tools/bin/pip --python /opt/gacq-deploy/bin/python install --no-cache-dir --require-hashes \
        --only-binary :all: ${PIP_FLAGS} --requirement docker/serving.txt \
    && /tools/bin/pip --python /opt/gacq-deploy/bin/python install --no-cache-dir --no-index --no-deps /wheel/*.whl \
    && /tools/bin/pip --python /opt/gacq-deploy/bin/python check

FROM cpu-base AS release
COPY --from=release-environment /opt/gacq-deploy /opt/gacq-deploy
USER 10001:10001
WORKDIR /data
VOLUME /data
ENTRYPOINT ["gacq-deploy"]
CMD ["--help"]

# --- gpu ---
FROM ${CUDA_IMAGE} AS gpu-python
# Ubuntu keeps only the newest version of a package: a pinned one cannot be installed for long
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM gpu-python AS gpu-environment
ARG GPU_EXTRAS=gpu,trt
ARG TENSORRT_VERSION
ARG PIP_FLAGS=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /tools \
    && python3 -m venv --without-pip /opt/gacq-deploy
WORKDIR /source
COPY --from=wheel /wheel /wheel
COPY constraints.txt .
# TensorRT's packages fetch their libraries from NVIDIA's own index while they are installed
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    set -- /wheel/*.whl \
    && /tools/bin/pip --python /opt/gacq-deploy/bin/python install --no-cache-dir --constraint constraints.txt \
        ${PIP_FLAGS} "$1[${GPU_EXTRAS}]" "tensorrt==${TENSORRT_VERSION}"

FROM gpu-python AS gpu
ARG TENSORRT_VERSION
LABEL org.opencontainers.image.title="gacq-deploy" \
      org.opencontainers.image.description="From a diffusion denoiser to a verified INT8 engine, with TensorRT" \
      org.opencontainers.image.licenses="Apache-2.0" \
      gacq-deploy.tensorrt="${TENSORRT_VERSION}"
RUN groupadd --gid 10001 gacq \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin gacq \
    && install --directory --owner 10001 --group 10001 /data
COPY --from=gpu-environment /opt/gacq-deploy /opt/gacq-deploy
ENV PATH=/opt/gacq-deploy/bin:$PATH \
    HOME=/data \
    TMPDIR=/data \
    HF_HUB_DISABLE_TELEMETRY=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# the image must carry the TensorRT that its label names
RUN python -c "import sys; from importlib.metadata import version; sys.exit(version('tensorrt') != '${TENSORRT_VERSION}')"
USER 10001:10001
WORKDIR /data
VOLUME /data
ENTRYPOINT ["gacq-deploy"]
CMD ["--help"]
