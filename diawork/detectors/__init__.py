"""Detectors behind one face; ``registry`` knows them by name, and importing this package imports none of them."""
