"""The daemon: a durable event router over a Unix socket."""
