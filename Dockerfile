# The environment of all nodes, with speechrl in it, for machines without and with GPUs:
#   docker build -t speechrl:cpu .
#   docker build --build-arg DEVICE=gpu -t speechrl:gpu .
#   docker run --rm --shm-size=16g speechrl:cpu speechrl doctor       # Docker's own /dev/shm has 64 MB: too little
#   docker run --rm --gpus all --shm-size=16g -v /data:/data speechrl:gpu speechrl train /data/run.yaml runs_dir=/data/runs
# The driver is the host's (nvidia-container-toolkit); CUDA itself comes with torch's packages. Needs BuildKit.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG DEVICE=cpu
# An index with a CPU build of torch, where there is one; without it `make` takes the general build. Never one with a
# password: arguments stay in the image's history.
ARG PIP_EXTRA_INDEX_URL
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Makefile ./
COPY requirements requirements
# A layer of its own, which changes with the lock alone.
RUN --mount=type=cache,target=/root/.cache/pip make environment DEVICE=${DEVICE} VENV=/opt/speechrl
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY speech speech
COPY rollout rollout
COPY rewards rewards
COPY learner learner
COPY cluster cluster
RUN /opt/speechrl/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${BASE}
# g++: Triton and vLLM compile at run time. libnuma1: vLLM for CPUs. espeak-ng: phonemes of NeuTTS. wget: probes of
# KubeRay. No ffmpeg: recordings are read by soundfile.
# hadolint ignore=DL3008,SC2016
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates espeak-ng g++ libnuma1 wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 speechrl \
    && echo 'export PATH=/opt/speechrl/bin:$PATH' > /etc/profile.d/speechrl.sh
COPY --from=build /opt/speechrl /opt/speechrl
ENV PATH=/opt/speechrl/bin:$PATH
# By number, so that Kubernetes can see that it is not root.
USER 1000
WORKDIR /home/speechrl
CMD ["speechrl", "doctor"]
