"""Projected gradient ascent: the one loop, its ball, its settings, and losses over tiles and over several denoisers."""
