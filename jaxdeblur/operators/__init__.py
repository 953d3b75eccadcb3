"""The physics: blurring with its adjoint, kernels, finite differences."""
