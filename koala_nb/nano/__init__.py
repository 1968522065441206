"""The emoji world and the embedded family: everything that only they need."""
