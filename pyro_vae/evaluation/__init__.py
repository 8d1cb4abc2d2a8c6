"""How good a trained model is: held-out metrics, diagnostics and annealed importance sampling."""
