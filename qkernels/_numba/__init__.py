"""All that imports Numba: compiled loops, imported when they are first called."""
