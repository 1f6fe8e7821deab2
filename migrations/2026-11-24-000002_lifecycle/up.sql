-- The way down of an instance that nobody uses, and the way back: docs/lifecycle.md.
ALTER TABLE instances
    DROP CONSTRAINT instances_desired_check,
    DROP CONSTRAINT instances_phase_check,
    DROP CONSTRAINT instances_check,
    ADD CONSTRAINT instances_desired_check CHECK (desired IN ('running', 'paused', 'asleep', 'archived', 'deleted', 'purged')),
    ADD CONSTRAINT instances_phase_check CHECK (phase IN ('pending', 'starting', 'ready', 'running', 'restarting', 'failed',
        'draining', 'stopping', 'paused', 'asleep', 'archiving', 'archived', 'removing', 'deleted')),
    ADD COLUMN last_used_at     timestamptz,
    ADD COLUMN overrides        jsonb   NOT NULL DEFAULT '{}',
    -- The file that has the data. While there is none, the volume of this serial number has it.
    ADD COLUMN archive          jsonb,
    ADD COLUMN volume_serial    integer NOT NULL DEFAULT 0,
    ADD COLUMN spec             jsonb,
    ADD COLUMN next_spec        jsonb,
    ADD COLUMN rolling          boolean NOT NULL DEFAULT false,
    ADD COLUMN restorable_until timestamptz,
    -- An archive gives the port back, as the end does.
    ADD CONSTRAINT instances_port_where_needed CHECK (
        port IS NOT NULL OR (desired <> 'running' AND phase IN ('archived', 'removing', 'deleted'))),
    ADD CONSTRAINT instances_rolls_to_something CHECK (next_spec IS NOT NULL OR NOT rolling);
CREATE INDEX instances_tombstones ON instances (restorable_until) WHERE phase = 'deleted';

-- Until when HAProxy's counts were read: what was used later, nobody has written down.
ALTER TABLE installation ADD COLUMN use_read_at timestamptz;

-- What an owner is told before something happens to the data. One for each stay in a phase.
CREATE TABLE notices (
    id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    instance_id     uuid        NOT NULL REFERENCES instances ON DELETE CASCADE,
    kind            text        NOT NULL CHECK (kind IN ('archive', 'purge')),
    -- The stay that it is about: the instance's phase_since.
    stay            timestamptz NOT NULL,
    due_at          timestamptz NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    attempts        integer     NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    delivered_at    timestamptz,
    last_error      text,
    UNIQUE (instance_id, kind, stay)
);
CREATE INDEX notices_undelivered ON notices (next_attempt_at) WHERE delivered_at IS NULL;

-- Volumes, networks and archives that no row claims, and since when: they have their time of grace.
CREATE TABLE unclaimed (
    kind  text        NOT NULL CHECK (kind IN ('volume', 'network', 'archive')),
    name  text        NOT NULL,
    since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kind, name)
);

-- What is wanted may change without a new generation: a sleeping container is kept.
CREATE OR REPLACE FUNCTION notify_instance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.generation <> OLD.generation OR NEW.desired <> OLD.desired
        OR NEW.host <> OLD.host OR NEW.extra_hosts <> OLD.extra_hosts OR NEW.overrides <> OLD.overrides
        OR (NEW.rolling AND NOT OLD.rolling) THEN
        PERFORM pg_notify('haas', 'intent ' || NEW.id);
    ELSIF NEW.phase <> OLD.phase OR NEW.attempts <> OLD.attempts THEN
        PERFORM pg_notify('haas', 'progress ' || NEW.id);
    END IF;
    RETURN NULL;
END $$;
