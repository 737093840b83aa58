# syntax=docker/dockerfile:1
# docker build -f docker/cuda.Dockerfile -t slot-vllm:cuda .
FROM python:3.11-slim-bookworm

# CUDA's libraries come with torch. Triton compiles with g++ when an engine starts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

# Not slot-vllm doctor --fix: it would miss the GPU, which a build does not see.
RUN --mount=type=bind,target=/src,rw \
    pip install --no-cache-dir '/src[cuda,eval]' \
    && python -c 'from slot_vllm.evaluation import sentences; sentences.get()'

# What the driver gives to a container of an image that is not NVIDIA's.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --create-home --uid 1000 slot
USER 1000
WORKDIR /home/slot
EXPOSE 8000
ENTRYPOINT ["slot-vllm"]
CMD ["--help"]
