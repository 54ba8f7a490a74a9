# The container images: docker build --target sidecar|daemon|webhook, or all of them with `make image`.
# It takes wheels from build/wheels if they are there, and else fetches them: only then the build needs a network.
#
# RUNTIME needs Python and no shell; BUILDER needs pip, and the same Python (3.11, say): bytecode is made for one.
ARG BUILDER=docker.io/library/python:3.11-slim-bookworm
ARG RUNTIME=gcr.io/distroless/python3-debian12

FROM ${BUILDER} AS builder
USER 0:0
WORKDIR /build
COPY scripts/image_contents.py contents.py
# The brackets make patterns of it: there may be no such folders.
COPY pyproject.toml buil[d]/wheel[s] wheels/
RUN ["python3", "contents.py", "dependencies", "wheels/pyproject.toml", "wheels", "daemon"]
COPY src src
RUN ["python3", "contents.py", "daemon", "src", "daemon"]
RUN ["python3", "contents.py", "sidecar", "src", "sidecar"]
COPY LICENSE daemon/
COPY LICENSE sidecar/

# The base may have no bytecode of its standard library: what is imported of it is compiled by its own Python.
# That imports all modules of both images, so a Python which is not the builder's is found out here.
FROM ${RUNTIME} AS sidecar-files
USER 0:0
COPY --from=builder /build/contents.py /build/sidecar.modules /build/
COPY --from=builder /build/sidecar /opt/freeze-proxy
RUN ["python3", "-I", "-S", "-B", "-OO", "/build/contents.py", "warm", "/build/sidecar.modules", "/files"]

FROM ${RUNTIME} AS daemon-files
USER 0:0
COPY --from=builder /build/contents.py /build/daemon.modules /build/
COPY --from=builder /build/daemon /opt/freeze-proxy
RUN ["python3", "-I", "-S", "-B", "-OO", "/build/contents.py", "warm", "/build/daemon.modules", "/files"]

FROM ${RUNTIME} AS sidecar
COPY --from=sidecar-files /files/ /
COPY --from=builder /build/sidecar /opt/freeze-proxy
WORKDIR /
USER 65532:65532
ENTRYPOINT ["python3", "-I", "-S", "-OO", "/opt/freeze-proxy/__main__.pyc"]
CMD []

FROM ${RUNTIME} AS webhook
COPY --from=daemon-files /files/ /
COPY --from=builder /build/daemon /opt/freeze-proxy
WORKDIR /
USER 65532:65532
ENTRYPOINT ["python3", "-I", "-S", "-OO", "/opt/freeze-proxy/__main__.pyc"]
CMD ["webhook"]

# The daemon is root: it writes the cgroups of other pods' containers, which belong to root, and speaks to the
# container runtime, whose socket does. What else root may do is for the manifest to take away: it needs no capability.
FROM webhook AS daemon
USER 0:0
CMD ["daemon"]
