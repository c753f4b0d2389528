"""Figures: arrays in, a Figure or frames out; the only door to matplotlib and seaborn."""
