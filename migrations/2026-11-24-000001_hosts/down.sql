DROP TRIGGER instances_hosts_new ON instances;
DROP TRIGGER instances_hosts_changed ON instances;
DROP FUNCTION keep_hosts;
DROP TABLE hosts;
CREATE OR REPLACE FUNCTION notify_instance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.generation <> OLD.generation THEN
        PERFORM pg_notify('haas', 'intent ' || NEW.id);
    ELSIF NEW.phase <> OLD.phase OR NEW.attempts <> OLD.attempts THEN
        PERFORM pg_notify('haas', 'progress ' || NEW.id);
    END IF;
    RETURN NULL;
END $$;
ALTER TABLE instances DROP COLUMN extra_hosts;
CREATE UNIQUE INDEX instances_host_live ON instances (host) WHERE phase <> 'deleted';
