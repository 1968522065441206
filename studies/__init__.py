"""Scripts that made what lies in `data/`, and measures of the code; each says command and time."""
