# UNTRIED: written where no Docker daemon was at hand.
#     docker build -t rl-study .                                                           # CPU
#     docker build -t rl-study:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .      # PyPI's torch brings CUDA
# The default study; then the smoke study. `--gpus all` needs the NVIDIA container toolkit on the host.
#     docker run --rm --user $(id -u) -v $PWD/results:/study/results rl-study
#     docker run --rm --user $(id -u) -v $PWD/results:/study/results --gpus all rl-study:cuda \
#         snakemake --resources gpu=1 --configfile pipelines/studies/smoke.yaml
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir "torch>=2.11,<2.14" --index-url "$TORCH_INDEX"
WORKDIR /study
COPY . .
# Any user may run it: records name the commit, and Snakemake and the libraries keep files here and in the home folder.
RUN pip install --no-cache-dir -e . && git config --system --add safe.directory /study && chmod -R a+rwX /study
ENV HOME=/tmp
CMD ["snakemake"]
