ALTER TABLE events DROP CONSTRAINT events_detail_bounded, DROP CONSTRAINT events_who_bounded;
ALTER TABLE notices DROP CONSTRAINT notices_last_error_bounded;
ALTER TABLE instances
    DROP CONSTRAINT instances_last_error_bounded,
    DROP CONSTRAINT instances_archive_bounded,
    DROP CONSTRAINT instances_hosts_bounded,
    DROP CONSTRAINT instances_names_bounded,
    ADD COLUMN last_log text;
UPDATE instances SET last_log = log FROM last_logs WHERE instance_id = id;
DROP TABLE last_logs;
