-- An app whose data takes more than it may: when that was seen, how much it was, and how much it may be. While this
-- stands here, and the limit is no higher, it is not woken: docs/lifecycle.md.
ALTER TABLE instances ADD COLUMN storage_full jsonb;
CREATE INDEX instances_storage_full ON instances (id) WHERE storage_full IS NOT NULL;
ALTER TABLE notices
    DROP CONSTRAINT notices_kind_check,
    ADD CONSTRAINT notices_kind_check CHECK (kind IN ('archive', 'purge', 'storage-full'));
