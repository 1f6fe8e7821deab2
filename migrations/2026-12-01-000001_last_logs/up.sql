-- The end of a failed Hoodie's log, apart from its row: rows are read for every request about an app, and a tenant
-- writes lines of any length. `haas show` alone reads this.
CREATE TABLE last_logs (
    instance_id uuid        PRIMARY KEY REFERENCES instances ON DELETE CASCADE,
    log         text        NOT NULL CHECK (octet_length(log) <= 16384),
    at          timestamptz NOT NULL DEFAULT now()
);
-- Of each the last 16 KiB, from the beginning of a character on: the rest of a cut character has at most three octets,
-- and each of them begins with the bits 10.
INSERT INTO last_logs (instance_id, log, at)
SELECT id,
       CASE WHEN length(octets) <= 16384 THEN last_log ELSE convert_from(substring(octets FROM length(octets) - 16383 + CASE
           WHEN get_byte(octets, length(octets) - 16384) & 192 <> 128 THEN 0
           WHEN get_byte(octets, length(octets) - 16383) & 192 <> 128 THEN 1
           WHEN get_byte(octets, length(octets) - 16382) & 192 <> 128 THEN 2
           ELSE 3 END), 'UTF8') END,
       updated_at
FROM (SELECT id, last_log, updated_at, convert_to(last_log, 'UTF8') AS octets FROM instances WHERE last_log IS NOT NULL) AS old;
ALTER TABLE instances DROP COLUMN last_log;

-- Whatever else of a tenant's, or of an engine's words about one, stands in a row has a bound, too. 512 characters are
-- 2 KiB at most.
UPDATE instances SET last_error = left(last_error, 511) || '…' WHERE octet_length(last_error) > 2048;
UPDATE notices SET last_error = left(last_error, 511) || '…' WHERE octet_length(last_error) > 2048;
ALTER TABLE instances
    ADD CONSTRAINT instances_last_error_bounded CHECK (octet_length(last_error) <= 2048),
    -- What no version has written must not keep anybody from migrating: only new rows are held to these.
    ADD CONSTRAINT instances_archive_bounded CHECK (octet_length(archive::text) <= 4096) NOT VALID,
    ADD CONSTRAINT instances_hosts_bounded CHECK (
        octet_length(host) <= 253 AND octet_length(extra_hosts::text) <= 4096) NOT VALID,
    ADD CONSTRAINT instances_names_bounded CHECK (
        octet_length(username) <= 63 AND octet_length(appname) <= 63 AND octet_length(container_name) <= 127
        AND octet_length(email) <= 254) NOT VALID;
ALTER TABLE notices ADD CONSTRAINT notices_last_error_bounded CHECK (octet_length(last_error) <= 2048);
-- Events that are written stay as they are. Postgres writes JSON with more blanks than Haas, which counts 16 KiB.
ALTER TABLE events
    ADD CONSTRAINT events_detail_bounded CHECK (octet_length(detail::text) <= 32768) NOT VALID,
    ADD CONSTRAINT events_who_bounded CHECK (
        octet_length(kind) <= 256 AND octet_length(username) <= 256 AND octet_length(appname) <= 256
        AND octet_length(client_id) <= 256 AND octet_length(key_id) <= 256 AND octet_length(source) <= 256
        AND octet_length(login) <= 256 AND octet_length(request_id) <= 256) NOT VALID;
