"""The catalogue of models, files and their records, devices."""
