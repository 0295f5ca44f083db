# syntax=docker/dockerfile:1
# lorarlhf in a container; docs/installation.md shows how to use it.
#
#   docker build -t lorarlhf .                           for NVIDIA cards
#   docker build -t lorarlhf --build-arg DEVICE=cpu .    without a card: a fifth of the size

# The wheel is built apart, so that the image holds neither the source nor what builds it.
FROM python:3.12-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md constraints.txt ./
COPY lorarlhf lorarlhf
COPY ui ui
COPY recipes recipes
RUN python -m pip wheel --no-deps --wheel-dir /wheel .

FROM python:3.12-slim-bookworm
ARG DEVICE=cuda

# Triton compiles its kernels for the card when they first run, which needs a C compiler.
RUN if [ "$DEVICE" = cuda ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && \
        rm -rf /var/lib/apt/lists/*; \
    fi

# PyTorch before the package, so that a new version of the package does not bring it again. The
# usual one has the libraries for cards in it; the driver is the host's.
COPY constraints.txt /tmp/constraints.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    torch="$(sed -n 's/^torch==/torch==/p' /tmp/constraints.txt)" && \
    case "$DEVICE" in \
        cuda) python -m pip install "$torch" ;; \
        cpu) python -m pip install uv && \
            python -m uv pip install --system --torch-backend cpu "$torch" ;; \
        *) echo "DEVICE is cuda or cpu, not $DEVICE" >&2; exit 1 ;; \
    esac
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    python -m pip install -c /tmp/constraints.txt /wheel/*.whl

# Not root. Both folders can be written by everybody, since --user may give another number.
RUN useradd --create-home --uid 1000 lorarlhf && \
    mkdir --mode=1777 /projects /cache && \
    chmod 1777 /home/lorarlhf
ENV HOME=/home/lorarlhf USER=lorarlhf \
    LORARLHF_CACHE=/cache/lorarlhf HF_HOME=/cache/huggingface MPLCONFIGDIR=/cache/matplotlib \
    TRITON_CACHE_DIR=/cache/triton \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER lorarlhf
WORKDIR /projects
VOLUME ["/projects", "/cache"]
EXPOSE 7860
# `docker stop` is Ctrl-C: a training finishes its step and saves it.
STOPSIGNAL SIGINT
ENTRYPOINT ["lorarlhf"]
# Without a command: the pages of the project in /projects. Within the container they listen on all
# addresses, since a published port arrives from outside, and so they ask for a login.
CMD ["ui", "--lan", "--no-browser"]
