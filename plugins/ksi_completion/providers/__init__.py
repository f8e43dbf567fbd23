"""Who makes answers: every provider works outside the daemon's process, behind one interface."""
