"""Load, peers and measurements: what an event costs, as ratios in one run."""
