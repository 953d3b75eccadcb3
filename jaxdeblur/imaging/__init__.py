"""Images in and out: formats, bit depth, colour, metadata, kernels as files, previews."""
