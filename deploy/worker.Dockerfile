# Penstock's worker: the process that copies a pipeline's changes.
#
#   docker build -f deploy/worker.Dockerfile -t penstock-worker .
#
# deploy/local/cluster builds the same file with a folder in place of the stage `build`, which holds what
# cargo has already built on the host. So the last stage runs nothing: it only copies, for any platform.
FROM docker.io/library/rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p penstock-worker \
 && install -D "${CARGO_TARGET_DIR:-target}/release/penstock-worker" /out/penstock-worker

FROM docker.io/library/debian:bookworm-slim
LABEL org.opencontainers.image.title="penstock-worker" \
      org.opencontainers.image.description="Penstock: the process that copies a pipeline's changes" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/penstock-worker /usr/local/bin/penstock-worker
# Numbers, so that a pod's runAsNonRoot can be checked. Nothing in the image needs to be written to.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/penstock-worker"]
