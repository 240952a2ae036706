"""Denoising with image-to-image networks: Gaussian noise, real camera noise, BM3D, an untrained-network study."""
