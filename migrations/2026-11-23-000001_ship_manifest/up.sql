-- The ship manifest: what should be, what was last seen, and which port is whose.

-- One row. Containers carry this id as a label, so that two installations on one engine
-- never touch each other's.
CREATE TABLE installation (
    only_row   boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    id         uuid        NOT NULL DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO installation DEFAULT VALUES;

CREATE TABLE instances (
    id                  uuid        PRIMARY KEY,
    username            text        NOT NULL,
    appname             text        NOT NULL,
    email               text        NOT NULL,
    host                text        NOT NULL,
    container_name      text        NOT NULL,
    port                integer     CHECK (port BETWEEN 1 AND 65535),
    desired             text        NOT NULL CHECK (desired IN ('running', 'deleted')),
    phase               text        NOT NULL CHECK (phase IN ('pending', 'starting', 'ready', 'running',
                                        'restarting', 'failed', 'draining', 'removing', 'deleted')),
    phase_since         timestamptz NOT NULL DEFAULT now(),
    generation          bigint      NOT NULL DEFAULT 1,
    observed_generation bigint      NOT NULL DEFAULT 0,
    attempts            integer     NOT NULL DEFAULT 0,
    next_attempt_at     timestamptz,
    last_error          text,
    last_log            text,
    restored            boolean     NOT NULL DEFAULT false,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    ready_at            timestamptz,
    CHECK (phase = 'deleted' OR port IS NOT NULL)
);

-- Live rows are those that are not tombstones. Their names are unique; a tombstone's may be
-- taken by somebody else, and then its own user gets a clear refusal.
CREATE UNIQUE INDEX instances_user_app_live  ON instances (username, appname) WHERE phase <> 'deleted';
CREATE UNIQUE INDEX instances_container_live ON instances (container_name)    WHERE phase <> 'deleted';
CREATE UNIQUE INDEX instances_host_live      ON instances (host)              WHERE phase <> 'deleted';
CREATE UNIQUE INDEX instances_port           ON instances (port);
CREATE INDEX instances_user_app              ON instances (username, appname, created_at DESC);

-- Ports that may not be given out at the moment, though no instance has them.
CREATE TABLE withheld_ports (
    port   integer     PRIMARY KEY CHECK (port BETWEEN 1 AND 65535),
    -- 'occupied': something else on the host listens there.
    -- 'draining': an old HAProxy worker may still route a host to it.
    reason text        NOT NULL CHECK (reason IN ('occupied', 'draining')),
    since  timestamptz NOT NULL DEFAULT now()
);

-- What happened. Append-only; never an email address or a secret, so that a person can be
-- forgotten without rewriting history.
CREATE TABLE events (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance_id uuid        NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind        text        NOT NULL,
    detail      jsonb       NOT NULL DEFAULT '{}'
);
CREATE INDEX events_instance ON events (instance_id, id);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the table % is append-only', TG_TABLE_NAME;
END $$;
CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Every writer nudges: 'intent <id>' wakes the reconciler, 'progress <id>' those who wait for it.
CREATE FUNCTION notify_instance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.generation <> OLD.generation THEN
        PERFORM pg_notify('haas', 'intent ' || NEW.id);
    ELSIF NEW.phase <> OLD.phase OR NEW.attempts <> OLD.attempts THEN
        PERFORM pg_notify('haas', 'progress ' || NEW.id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER instances_notify AFTER INSERT OR UPDATE ON instances
    FOR EACH ROW EXECUTE FUNCTION notify_instance();
