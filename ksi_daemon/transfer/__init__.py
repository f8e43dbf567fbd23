"""A log as a file, and a file as a log: CloudEvents 1.0, one JSON object a line."""
