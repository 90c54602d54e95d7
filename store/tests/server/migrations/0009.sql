-- What a server of version 9 wrote: what the host's monitor said of itself.
UPDATE hosts SET version = '0.1.0', kernel = '6.12.0' WHERE id = 'h1';
