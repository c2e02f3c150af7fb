# The image of one device, and of the testbed's one-shot services. Layers in the order in which they change:
# a change of the code costs seconds. No `# syntax=` line: it would pull a frontend before anything is built.
#
# CPU torch: pip takes the CPU build where it finds one, in the base image or in TORCH_INDEX (PyTorch's own
# index for CPU). For CUDA name its index for your CUDA version instead. Without one, the registry's build.
ARG PYTHON_IMAGE=python:3.11-slim

# What unweft needs, without unweft: read from setup.cfg, so that it is said in one place; in a stage of its own,
# so that only a change of the list installs anything anew.
FROM ${PYTHON_IMAGE} AS list
COPY setup.cfg .
RUN python -c "import configparser as c; s = c.ConfigParser(); s.read('setup.cfg'); print(s['options']['install_requires'])" \
        > /needs.txt

FROM ${PYTHON_IMAGE} AS needs
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/needs
WORKDIR /src
COPY --from=list /needs.txt ./
COPY constraints.txt ./
RUN /opt/needs/bin/pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -c constraints.txt -r needs.txt 'setuptools>=69' wheel \
    && cd /opt/needs/lib/python3*/site-packages \
    && rm -rf torch/include torch/share torch/test torch/bin/protoc*

FROM needs AS build
COPY . .
RUN /opt/needs/bin/pip install --no-deps --no-build-isolation --target /opt/unweft .

FROM ${PYTHON_IMAGE}
# Read-only roots: what libraries want to write goes to /tmp. USER: some look their user's name up.
ENV PATH=/opt/unweft/bin:/opt/needs/bin:$PATH PYTHONPATH=/opt/unweft PYTHONUNBUFFERED=1 \
    HOME=/tmp USER=unweft HF_HUB_DISABLE_TELEMETRY=1 OMP_NUM_THREADS=1 \
    UNWEFT_LISTEN=tcp://0.0.0.0:7000 UNWEFT_OUT=/results UNWEFT_HEALTH=/tmp/unweft-health
# A new volume takes its owner and mode from the folder that it covers.
RUN mkdir /results /keys /identity \
    && chown 10001:10001 /results /keys /identity \
    && chmod 1777 /results /identity && chmod 700 /keys
COPY --from=needs /opt/needs /opt/needs
COPY --from=build /opt/unweft /opt/unweft
COPY scenarios /scenarios
USER 10001:10001
EXPOSE 7000
HEALTHCHECK --interval=15s --timeout=10s --start-period=90s --retries=2 CMD ["python", "-m", "peers.runtime.health"]
ENTRYPOINT ["unweft"]
CMD ["device"]
