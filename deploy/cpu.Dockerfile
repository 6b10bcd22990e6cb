# The server on a CPU, with the packages that `make setup` pins, and the default model's weights.
#
#     docker build -f deploy/cpu.Dockerfile -t activation-logging:cpu .
#     docker run -p 127.0.0.1:8000:8000 -v store:/data activation-logging:cpu --model MODEL --host 0.0.0.0
FROM python:3.12-slim-bookworm

# vLLM compiles the model's graph with a C++ compiler while it starts; `make setup` needs make and git.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git libnuma1 make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 server \
    && mkdir /app /data \
    && chown server:server /app /data
USER 1000:1000
WORKDIR /app
COPY --chown=server:server . .
RUN make setup ACCELERATOR=cpu PYTHON=python3.12 && rm -rf /home/server/.cache/pip

ENV PATH=/app/.venv/bin:$PATH \
    ACTIVATION_LMDB_PATH=/data/activations.lmdb \
    HF_HOME=/data/huggingface \
    VLLM_CPU_KVCACHE_SPACE=4
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=10m --interval=30s --timeout=10s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["python", "-m", "activation_logging.vllm_serve"]
CMD ["--help"]
