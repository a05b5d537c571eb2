"""What weights say: interaction matrices, spectra, Fourier circuits, similarity. Pure functions."""
