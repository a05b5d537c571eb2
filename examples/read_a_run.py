"""From a finished run to its circuits: `python examples/read_a_run.py runs/p64-…`."""

import sys

import matplotlib.pyplot as plt

import bilinear
from bilinear.reading import fourier, spectra

results = bilinear.Results(sys.argv[1])
model = results.model(16)  # of the first seed
q = results.interaction(16, remainder=5)  # (2p, 2p): xᵀQx is the logit of remainder 5
print("strongest eigenvalues of Q:", spectra.eigenvalues(model, output=5)[:4].tolist())
print("frequencies in use:", fourier.frequencies(model).tolist())
bilinear.plots.interaction_matrix(q, plt.gca(), limit=float(q.abs().max()), title="d = 16, c = 5")
plt.savefig("q5.png", dpi=200)
