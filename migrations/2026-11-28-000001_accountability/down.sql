DROP TABLE request_nonces;
DROP INDEX events_at;
DROP INDEX events_names;
DROP TRIGGER events_name ON events;
DROP FUNCTION name_event();
ALTER TABLE events DISABLE TRIGGER events_append_only;
DELETE FROM events WHERE instance_id IS NULL;
ALTER TABLE events ENABLE TRIGGER events_append_only;
ALTER TABLE events
    DROP COLUMN outcome, DROP COLUMN request_id, DROP COLUMN login, DROP COLUMN source, DROP COLUMN key_id,
    DROP COLUMN client_id, DROP COLUMN actor, DROP COLUMN appname, DROP COLUMN username,
    ALTER COLUMN instance_id SET NOT NULL;
