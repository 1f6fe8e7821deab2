# Haas itself, for docker-compose.yml. The image that tenants run is another one: hoodie/.
#
#   docker build -t haas/haas:VERSION .                      compiles here
#   docker build --target prebuilt -t haas/haas:VERSION DIR  takes the binary DIR/haas, as scripts/build-compose-images does
#
# The base is HAProxy's own image, so that `haproxy -c` is of the version that will run what it has checked. Nothing
# else is needed: Haas reaches Postgres, Docker and HAProxy over sockets, and no TLS server.

ARG HAPROXY_IMAGE=haproxy:3.0
ARG RUST_IMAGE=rust:1.95-bookworm

FROM ${HAPROXY_IMAGE} AS runtime
LABEL org.opencontainers.image.title="Haas" \
      org.opencontainers.image.description="Hoodie as a Service: the control plane" \
      org.opencontainers.image.licenses="MIT"
USER root
# A number that no distribution gives away. A new volume takes over the owner and the mode of its mount point.
RUN echo 'haas:x:5500:5500:Haas:/:/usr/sbin/nologin' >>/etc/passwd \
 && echo 'haas:x:5500:' >>/etc/group \
 && install -d -m 0755 -o 5500 -g 5500 /etc/haas /etc/haas/haproxy \
 && install -d -m 0700 -o 5500 -g 5500 /etc/haas/secrets /etc/haas/tls /var/lib/haas/archive \
 && install -d -m 0750 -o 5500 -g 5500 /run/haas
USER 5500:5500
WORKDIR /
# Not those of the base: HAProxy's soft stop means nothing to Haas.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/haas"]
CMD ["serve", "--make-secrets"]

# Before the stage that compiles: a builder without BuildKit carries out every stage up to the wanted one.
FROM runtime AS prebuilt
COPY haas /usr/local/bin/haas

# Its C library must not be newer than the base's.
FROM ${RUST_IMAGE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin haas

FROM runtime
COPY --from=build /src/target/release/haas /usr/local/bin/haas
