"""Diffusion models of others in the slot: folders in the layout of the library diffusers, read from this disk alone."""
