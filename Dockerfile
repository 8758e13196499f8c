# A GPU node for splatpipe: pinned versions from constraints.txt, the CUDA toolkit that gsplat's kernels are built with.
#   docker build -t splatpipe .
#   docker build -t splatpipe --build-arg LFS=lichtfeld-studio.tar.gz .     with a LichtFeld Studio that you have built
#   docker run --rm --gpus all --shm-size 2g -v /data:/data splatpipe run --batch /data/scene
# docs/cluster.md says more. CUDA_VERSION must be what the pinned torch was built for (torch.version.cuda).
ARG CUDA_VERSION=13.0.1
FROM nvidia/cuda:${CUDA_VERSION}-devel-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:/opt/lfs:$PATH
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv python3-dev g++ ninja-build git tini \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/venv

# What changes seldom comes first: the libraries, then splatpipe.
WORKDIR /opt/splatpipe
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN pip install -c constraints.txt "$(grep '^torch==' constraints.txt)"
COPY splatpipe splatpipe
COPY lfs_configs lfs_configs
RUN pip install -c constraints.txt ".[cuda,ray,slurm]"

# gsplat's kernels are compiled at the first run and kept here: mount it to keep them between containers.
# 8.0 A100, 8.6 and 8.9 consumer cards, 9.0 H100 and H200; fewer compile faster.
ENV TORCH_CUDA_ARCH_LIST="8.0;8.6;8.9;9.0" TORCH_EXTENSIONS_DIR=/var/cache/splatpipe
RUN mkdir -p /var/cache/splatpipe && chmod 1777 /var/cache/splatpipe

# Optional: an archive with LichtFeld-Studio in it, from the build context; without one nothing is copied.
ARG LFS=LICENSE
COPY ${LFS} /opt/lfs/
RUN if ls /opt/lfs/*.tar.gz >/dev/null 2>&1; then tar -xzf /opt/lfs/*.tar.gz -C /opt/lfs && rm /opt/lfs/*.tar.gz; fi

# tini takes process 1: it hands SIGTERM on, and buries what trainers leave.
ENTRYPOINT ["tini", "--", "splatpipe"]
CMD ["doctor"]
