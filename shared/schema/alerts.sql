-- Alerts that are sent by our own processes, where ORCHEO_ALERTS_URLS is set: see docs/alerts.md.
--
-- Executed by each `migrate`, after waiting.sql: each statement may be repeated. No revision creates these tables, so that
-- processes of the last release still start.


-- Conditions that were found true. One row per alert and subject; a row is used again when its condition returns.
CREATE TABLE IF NOT EXISTS orcheo_dispatch.alert (
    -- Name of the rule in ops/prometheus/alerts.yml.
    name          text NOT NULL,
    -- What it is about, for rules with several subjects: a step, or a kind of process and its host; otherwise empty.
    subject       text NOT NULL DEFAULT '',
    -- The figure that the message shows.
    value         float8 NOT NULL DEFAULT 0,
    -- Since when the condition has been true, without a gap.
    since         timestamptz NOT NULL DEFAULT now(),
    -- When it was last found true.
    seen_at       timestamptz NOT NULL DEFAULT now(),
    -- When a message was last delivered; null: none since `since`.
    told_at       timestamptz,
    -- When the recovery message was delivered; null: the condition has not ended, or no message was sent.
    resolved_at   timestamptz,
    -- The process that sends, or sent, the last message.
    by            uuid,
    -- Until then no other process sends one.
    sending_until timestamptz,
    PRIMARY KEY (name, subject)
);
COMMENT ON TABLE orcheo_dispatch.alert IS 'Alerts: conditions that were found true, and when messages were delivered.';


-- The process that decides which messages are due: one row. A dispatcher takes it from a worker at once.
CREATE TABLE IF NOT EXISTS orcheo_dispatch.teller (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    by    uuid,
    kind  text,
    until timestamptz NOT NULL DEFAULT '-infinity'
);
COMMENT ON TABLE orcheo_dispatch.teller IS 'The process that decides which alerts are sent. One row.';
INSERT INTO orcheo_dispatch.teller DEFAULT VALUES ON CONFLICT DO NOTHING;
