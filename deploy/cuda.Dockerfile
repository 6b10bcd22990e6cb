# The server on NVIDIA GPUs, as the README installs it. The driver and the container toolkit are the
# host's; CUDA's libraries come with torch's wheels.
#
#     docker build -f deploy/cuda.Dockerfile -t activation-logging:cuda .
#     docker run --gpus all --ipc host -p 127.0.0.1:8000:8000 -v store:/data activation-logging:cuda \
#         --model mistralai/Mistral-7B-Instruct-v0.2 --host 0.0.0.0
FROM python:3.12-slim-bookworm

# Triton compiles its launchers with a C compiler while the server starts.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 server \
    && mkdir /app /data \
    && chown server:server /app /data
USER 1000:1000
WORKDIR /app
COPY --chown=server:server . .
RUN python -m venv .venv \
    && .venv/bin/pip install --no-cache-dir -r activation_logging/requirements.txt -e ".[s3,export]"

ENV PATH=/app/.venv/bin:$PATH \
    ACTIVATION_LMDB_PATH=/data/activations.lmdb \
    HF_HOME=/data/huggingface \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=20m --interval=30s --timeout=10s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["python", "-m", "activation_logging.vllm_serve"]
CMD ["--help"]
