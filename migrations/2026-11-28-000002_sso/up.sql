-- Links with which an owner signs on to an app's admin dashboard, each of them once. Whoever reads
-- this table can't: it has the tokens' SHA-256 alone.
CREATE TABLE sign_on_tokens (
    hash        bytea       PRIMARY KEY CHECK (octet_length(hash) = 32),
    instance_id uuid        NOT NULL REFERENCES instances ON DELETE CASCADE,
    -- The instance's: with the next one the link is void.
    generation  bigint      NOT NULL,
    expires_at  timestamptz NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sign_on_tokens_expired ON sign_on_tokens (expires_at);
CREATE INDEX sign_on_tokens_instance ON sign_on_tokens (instance_id);
