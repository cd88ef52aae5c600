# The cluster's DNS; the context is a folder with the static binary.
FROM scratch
COPY coredns /coredns
ENTRYPOINT ["/coredns"]
