"""Start, stop and look at the daemon: what ``daemon_control.py`` does, for other programs to use.

main.py       the command line
starting.py   start, restart, --foreground
stopping.py   stop
status.py     status, health
logs.py       logs
standing.py   how the daemon stands: running, stopped, dead with its files left, ...
processes.py  processes that are signalled and waited for by handle, never by a number that may be reused
wording.py    outcomes, and figures as people write them
"""
