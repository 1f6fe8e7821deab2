//! The tables, as the migrations leave them.
#![allow(missing_docs, reason = "diesel's macro makes items that have no place for docs")]

diesel::table! {
    installation (only_row) {
        only_row -> Bool,
        id -> Uuid,
        created_at -> Timestamptz,
        use_read_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    instances (id) {
        id -> Uuid,
        username -> Text,
        appname -> Text,
        email -> Text,
        host -> Text,
        container_name -> Text,
        port -> Nullable<Integer>,
        desired -> Text,
        phase -> Text,
        phase_since -> Timestamptz,
        generation -> BigInt,
        observed_generation -> BigInt,
        attempts -> Integer,
        next_attempt_at -> Nullable<Timestamptz>,
        last_error -> Nullable<Text>,
        restored -> Bool,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        ready_at -> Nullable<Timestamptz>,
        extra_hosts -> Array<Text>,
        last_used_at -> Nullable<Timestamptz>,
        overrides -> Jsonb,
        archive -> Nullable<Jsonb>,
        volume_serial -> Integer,
        spec -> Nullable<Jsonb>,
        next_spec -> Nullable<Jsonb>,
        rolling -> Bool,
        restorable_until -> Nullable<Timestamptz>,
        storage_full -> Nullable<Jsonb>,
    }
}

diesel::table! {
    last_logs (instance_id) {
        instance_id -> Uuid,
        log -> Text,
        at -> Timestamptz,
    }
}

diesel::table! {
    hosts (host) {
        host -> Text,
        instance_id -> Uuid,
    }
}

diesel::table! {
    withheld_ports (port) {
        port -> Integer,
        reason -> Text,
        since -> Timestamptz,
    }
}

diesel::table! {
    events (id) {
        id -> BigInt,
        instance_id -> Nullable<Uuid>,
        at -> Timestamptz,
        kind -> Text,
        detail -> Jsonb,
        username -> Nullable<Text>,
        appname -> Nullable<Text>,
        actor -> Text,
        client_id -> Nullable<Text>,
        key_id -> Nullable<Text>,
        source -> Nullable<Text>,
        login -> Nullable<Text>,
        request_id -> Nullable<Text>,
        outcome -> Text,
    }
}

diesel::table! {
    notices (id) {
        id -> Uuid,
        instance_id -> Uuid,
        kind -> Text,
        stay -> Timestamptz,
        due_at -> Timestamptz,
        created_at -> Timestamptz,
        attempts -> Integer,
        next_attempt_at -> Timestamptz,
        delivered_at -> Nullable<Timestamptz>,
        last_error -> Nullable<Text>,
    }
}

diesel::table! {
    unclaimed (kind, name) {
        kind -> Text,
        name -> Text,
        since -> Timestamptz,
    }
}

diesel::table! {
    request_nonces (client_id, nonce) {
        client_id -> Text,
        nonce -> Text,
        expires_at -> Timestamptz,
    }
}

diesel::table! {
    sign_on_tokens (hash) {
        hash -> Bytea,
        instance_id -> Uuid,
        generation -> BigInt,
        expires_at -> Timestamptz,
        created_at -> Timestamptz,
    }
}

diesel::allow_tables_to_appear_in_same_query!(hosts, instances, notices, withheld_ports);
