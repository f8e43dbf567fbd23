"""`ksi plugin check`: load one plugin in a process that may die of it, and say what is found.

``python -m ksi_daemon.checking NAME [--file PATH]`` writes a line of JSON for each finding; the last one is
``{"done": true}``, without which the process did not survive the plugin.
"""
