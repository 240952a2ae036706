"""Accelerated MRI in the fastMRI framework: data, training, scoring and submissions."""
