"""Sweeps: files, cells, workers, launching; the YAML files of the paper's tables lie here, too."""
