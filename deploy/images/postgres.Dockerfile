# PostgreSQL 15 for demonstrations and end-to-end tests: takes the environment of
# docker.io/library/postgres, so that a manifest works with either. `rootfs` is a build context: a Debian
# folder tree with postgresql-15 in it, which deploy/local/cluster makes.
FROM scratch
COPY --from=rootfs / /
COPY postgres-entrypoint /usr/local/bin/postgres-entrypoint
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PGDATA=/var/lib/postgresql/data
# The uid that docker.io/library/postgres uses.
USER 999:999
EXPOSE 5432
# Fast shutdown: SIGTERM would wait for every client to leave.
STOPSIGNAL SIGINT
ENTRYPOINT ["/usr/local/bin/postgres-entrypoint"]
CMD ["postgres"]
