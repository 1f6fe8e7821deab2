-- Who brought a change about, by which request, and what came of it.
ALTER TABLE events
    -- Of one that was refused there need not be an instance.
    ALTER COLUMN instance_id DROP NOT NULL,
    ADD COLUMN username   text,
    ADD COLUMN appname    text,
    -- 'haas' itself, a 'client' of the API, an 'admin' at the command line, a 'visitor' of an app's host.
    ADD COLUMN actor      text NOT NULL DEFAULT 'haas' CHECK (actor IN ('haas', 'client', 'admin', 'visitor')),
    ADD COLUMN client_id  text,
    ADD COLUMN key_id     text,
    ADD COLUMN source     text,
    ADD COLUMN login      text,
    ADD COLUMN request_id text,
    ADD COLUMN outcome    text NOT NULL DEFAULT 'done' CHECK (outcome IN ('done', 'refused', 'failed'));

ALTER TABLE events DISABLE TRIGGER events_append_only;
UPDATE events SET outcome = 'failed' WHERE kind = 'failed';
UPDATE events SET username = instances.username, appname = instances.appname
    FROM instances WHERE instances.id = events.instance_id;
ALTER TABLE events ENABLE TRIGGER events_append_only;

-- An event outlives its instance's row: it carries the names itself.
CREATE FUNCTION name_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.username IS NULL THEN
        SELECT username, appname INTO NEW.username, NEW.appname FROM instances WHERE id = NEW.instance_id;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER events_name BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION name_event();

CREATE INDEX events_names ON events (username, appname, id);
CREATE INDEX events_at    ON events (at);

-- Nonces of signed requests, for as long as the same bytes would be in time: each is good once, whichever
-- server takes the request.
CREATE TABLE request_nonces (
    client_id  text        NOT NULL,
    nonce      text        NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (client_id, nonce)
);
CREATE INDEX request_nonces_expiry ON request_nonces (expires_at);
