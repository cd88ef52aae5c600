# The process that holds a pod's namespaces open; the context is a folder with the static binary.
FROM scratch
COPY pause /pause
USER 65532:65532
ENTRYPOINT ["/pause"]
