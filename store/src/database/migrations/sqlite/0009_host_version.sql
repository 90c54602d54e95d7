-- What a host's monitor says of itself with its heartbeat.
ALTER TABLE hosts ADD COLUMN version TEXT;
ALTER TABLE hosts ADD COLUMN kernel TEXT;
