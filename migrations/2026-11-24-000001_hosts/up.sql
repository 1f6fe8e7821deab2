-- Custom domains: further hosts that lead to an instance, besides the one that the pattern gives.
ALTER TABLE instances ADD COLUMN extra_hosts text[] NOT NULL DEFAULT '{}'
    CHECK (array_position(extra_hosts, NULL) IS NULL);

-- Which host is whose: host and extra_hosts of every live row. A host belongs to one instance at
-- most, whichever of the two lists it stands in, and that is for this table to say. The triggers
-- below write it, and nobody else does.
--
-- Deferrable, so that hosts can change hands within one transaction.
CREATE TABLE hosts (
    host        text NOT NULL,
    instance_id uuid NOT NULL REFERENCES instances ON DELETE CASCADE,
    CONSTRAINT hosts_pkey PRIMARY KEY (host) DEFERRABLE INITIALLY IMMEDIATE
);
CREATE INDEX hosts_instance ON hosts (instance_id);
INSERT INTO hosts (host, instance_id) SELECT host, id FROM instances WHERE phase <> 'deleted';
DROP INDEX instances_host_live;

CREATE FUNCTION keep_hosts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM hosts WHERE instance_id = NEW.id;
    IF NEW.phase <> 'deleted' THEN
        INSERT INTO hosts (host, instance_id) SELECT unnest(NEW.host || NEW.extra_hosts), NEW.id;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER instances_hosts_new AFTER INSERT ON instances
    FOR EACH ROW EXECUTE FUNCTION keep_hosts();
-- The condition keeps it out of the way of the reconciler's many small writes.
CREATE TRIGGER instances_hosts_changed AFTER UPDATE ON instances
    FOR EACH ROW WHEN (
        OLD.host <> NEW.host OR OLD.extra_hosts <> NEW.extra_hosts
        OR (OLD.phase = 'deleted') <> (NEW.phase = 'deleted')
    ) EXECUTE FUNCTION keep_hosts();

-- Hosts are intent, too: the reconciler publishes them.
CREATE OR REPLACE FUNCTION notify_instance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.generation <> OLD.generation
        OR NEW.host <> OLD.host OR NEW.extra_hosts <> OLD.extra_hosts THEN
        PERFORM pg_notify('haas', 'intent ' || NEW.id);
    ELSIF NEW.phase <> OLD.phase OR NEW.attempts <> OLD.attempts THEN
        PERFORM pg_notify('haas', 'progress ' || NEW.id);
    END IF;
    RETURN NULL;
END $$;
