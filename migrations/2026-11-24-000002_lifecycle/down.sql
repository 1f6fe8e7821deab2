-- An older version knows nothing of archives, and looks for the data in the first volume alone.
DO $$ BEGIN
    IF EXISTS (SELECT FROM instances WHERE archive IS NOT NULL OR volume_serial > 0 OR desired = 'purged') THEN
        RAISE EXCEPTION 'some instances are archived, or once were, or are being purged';
    END IF;
END $$;
DROP TABLE notices, unclaimed;
ALTER TABLE installation DROP COLUMN use_read_at;
DROP INDEX instances_tombstones;
UPDATE instances SET desired = 'running', phase = 'pending' WHERE desired IN ('paused', 'asleep', 'archived');
UPDATE instances SET phase = 'pending' WHERE phase IN ('stopping', 'paused', 'asleep', 'archiving');
ALTER TABLE instances
    DROP CONSTRAINT instances_desired_check,
    DROP CONSTRAINT instances_phase_check,
    DROP CONSTRAINT instances_port_where_needed,
    DROP COLUMN last_used_at,
    DROP COLUMN overrides,
    DROP COLUMN archive,
    DROP COLUMN volume_serial,
    DROP COLUMN rolling,
    DROP COLUMN spec,
    DROP COLUMN next_spec,
    DROP COLUMN restorable_until,
    ADD CONSTRAINT instances_desired_check CHECK (desired IN ('running', 'deleted')),
    ADD CONSTRAINT instances_phase_check CHECK (phase IN ('pending', 'starting', 'ready', 'running',
        'restarting', 'failed', 'draining', 'removing', 'deleted')),
    ADD CONSTRAINT instances_check CHECK (phase = 'deleted' OR port IS NOT NULL);
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
