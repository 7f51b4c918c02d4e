"""Figures beside the machine's own containerd, taken in the same run and shown as ratios."""
