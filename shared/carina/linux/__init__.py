"""System calls that Python does not have, and what the kernel says about processes and mounts."""
