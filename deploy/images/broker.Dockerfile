# Mosquitto with the settings that AMP4EC needs. The context, from `amp4ec docker build`:
#
#   mosquitto.conf   rendered by broker/config.py
#   healthy          deploy/images/healthy
ARG BASE=eclipse-mosquitto:2

FROM ${BASE}
RUN mkdir -p /var/lib/amp4ec && chown 10001:10001 /var/lib/amp4ec
COPY mosquitto.conf /etc/amp4ec/mosquitto.conf
COPY healthy /opt/amp4ec/healthy
ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin
USER 10001:10001
WORKDIR /var/lib/amp4ec
EXPOSE 1883
HEALTHCHECK --interval=5s --timeout=5s --start-period=10s --retries=3 CMD ["/opt/amp4ec/healthy", "listening"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["mosquitto", "-c", "/etc/amp4ec/mosquitto.conf"]
