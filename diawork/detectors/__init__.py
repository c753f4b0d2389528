"""Detectors with one interface; ``registry`` knows them by name, and importing this package imports none of them."""
