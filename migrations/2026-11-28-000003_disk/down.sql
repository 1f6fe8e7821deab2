DELETE FROM notices WHERE kind = 'storage-full';
ALTER TABLE notices
    DROP CONSTRAINT notices_kind_check,
    ADD CONSTRAINT notices_kind_check CHECK (kind IN ('archive', 'purge'));
-- An older version takes a limit that it does not know for a corrupt row. Who was stopped sleeps, and wakes as others do.
UPDATE instances SET overrides = overrides - 'disk_mib' WHERE overrides ? 'disk_mib';
DROP INDEX instances_storage_full;
ALTER TABLE instances DROP COLUMN storage_full;
