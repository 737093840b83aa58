# syntax=docker/dockerfile:1
# docker build -f docker/cpu.Dockerfile --build-arg PIP_EXTRA_INDEX_URL=INDEX -t slot-vllm:cpu .
FROM python:3.11-slim-bookworm

# vLLM's CPU build loads libnuma, and g++ compiles SLOT's kernels when an engine starts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*

# PyTorch's index of CPU builds: docs/install.md has its address.
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=bind,target=/src,rw \
    pip install --no-cache-dir '/src[cpu,eval]' \
    && slot-vllm doctor --fix

RUN useradd --create-home --uid 1000 slot
USER 1000
WORKDIR /home/slot
EXPOSE 8000
ENTRYPOINT ["slot-vllm"]
CMD ["--help"]
