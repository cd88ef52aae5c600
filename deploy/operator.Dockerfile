# Penstock's operator: the Kubernetes operator.
#
#   docker build -f deploy/operator.Dockerfile -t penstock-operator .
#
# deploy/local/cluster builds the same file with a folder in place of the stage `build`, which holds what
# cargo has already built on the host. So the last stage runs nothing: it only copies, for any platform.
FROM docker.io/library/rust:1-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p penstock-operator \
 && install -D "${CARGO_TARGET_DIR:-target}/release/penstock-operator" /out/penstock-operator

FROM docker.io/library/debian:bookworm-slim
LABEL org.opencontainers.image.title="penstock-operator" \
      org.opencontainers.image.description="Penstock: the Kubernetes operator" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/penstock-operator /usr/local/bin/penstock-operator
# Numbers, so that a pod's runAsNonRoot can be checked. Nothing in the image needs to be written to.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/penstock-operator"]
