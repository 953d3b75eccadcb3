"""Pictures in and out: formats, bit depth, colour, metadata, kernels as files, and pictures for people to look at."""
